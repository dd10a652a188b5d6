import { execFileSync } from 'node:child_process'
import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import t from 'tap'

import { Store } from '../../src/store/store.js'
import type { ImagePiece, ImageWriter } from '../../src/image/image-writer.js'
import { contentIdOf } from '../../src/jobs/content-id.js'
import { restoreDisk } from '../../src/jobs/restore-disk.js'
import {
  FIXTURES,
  GOLDEN_BELOW,
  GOLDEN_PASSPHRASES,
  GOLDEN_STORES,
  copyGolden,
  goldenBase,
  memoryDisk,
  sha256,
  sumsOf,
} from '../golden/golden.js'
import { given, never } from './harness.js'

t.setTimeout(120_000)

const expectedSums = (name: string) =>
  readFileSync(join(FIXTURES, `${name}.sha256`), 'utf8')
    .trimEnd()
    .split('\n')

for (const name of GOLDEN_STORES) {
  const passphrases = name.endsWith('encrypted') ? GOLDEN_PASSPHRASES : [undefined]
  for (const passphrase of passphrases) {
    t.test(`${name} reads as it was written${passphrase === undefined ? '' : `, with "${passphrase}"`}`, async t => {
      const location = copyGolden(name, t.testdir())

      await using store = await Store.open(location, {
        passphrase: passphrase === undefined ? undefined : given(passphrase),
      })

      t.strictSame(await sumsOf(store), expectedSums(name))
      t.strictSame(await store.points.unreadable(), [])
      const [, first, second] = await store.points.list()
      t.match(first, { domain: { name: 'datenbank-ä' }, sequence: 1, mode: 'full', tags: ['golden'] })
      t.match(second, { sequence: 2, mode: 'incremental', parent: first?.id, checkpoint: { disks: ['vda'] } })
      t.match(await store.points.notes(first!), { tags: ['golden', 'kept'], hold: { reason: 'an example' } })
    })
  }
}

t.test(`${GOLDEN_BELOW} reads as it was written, with the image that its points leave out and not without`, async t => {
  const location = copyGolden(GOLDEN_BELOW, t.testdir())
  await using store = await Store.open(location)
  const base = goldenBase()
  const images = memoryDisk(base)

  const lines: string[] = []
  for (const point of await store.points.list()) {
    for (const { target, size, root, below } of point.disks) {
      const geometry = { size, chunkSize: store.chunkSize }
      t.strictSame(below?.contentId, await contentIdOf(images, () => undefined, never))
      t.strictSame(below?.images[0]?.virtualSize, base.length)
      const restore = {
        store,
        root,
        geometry,
        onDamage: 'stop' as const,
        onLost: () => undefined,
        onProgress: () => undefined,
      }
      const image = new MemoryImage(size)
      await restoreDisk({ ...restore, image, below: { kind: 'copy', images } }, never)
      lines.push(`${sha256(image.bytes)}  ${point.id}/${target}`)
      await t.rejects(restoreDisk({ ...restore, image: new MemoryImage(size) }, never), { code: 'E_UNSUPPORTED' })
    }
  }
  t.strictSame(lines.sort(), expectedSums(GOLDEN_BELOW))
})

/** Full of what nothing must leave there. */
class MemoryImage implements ImageWriter {
  readonly name = 'memory'
  readonly startsZeroed = false
  readonly size: number
  readonly bytes: Buffer

  constructor(size: number) {
    this.size = size
    this.bytes = Buffer.alloc(size, 0xee)
  }

  write(pieces: readonly ImagePiece[], bytes: Uint8Array): Promise<void> {
    let start = 0
    for (const { offset, length } of pieces) {
      this.bytes.set(bytes.subarray(start, start + length), offset)
      start += length
    }
    return Promise.resolve()
  }

  zero(offset: number, length: number): Promise<void> {
    this.bytes.fill(0, offset, offset + length)
    return Promise.resolve()
  }

  markDamaged(): Promise<void> {
    return Promise.resolve()
  }

  commit(): ReturnType<ImageWriter['commit']> {
    return Promise.resolve({ dataBytes: 0, fileBytes: 0 })
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve()
  }
}

t.test('the same program makes the golden stores again', t => {
  const made = t.testdir()
  const program = fileURLToPath(new URL('../golden/make-golden.js', import.meta.url))

  execFileSync(process.execPath, [program, made])

  const again = readdirSync(made, { recursive: true, encoding: 'utf8' }).sort()
  const golden = readdirSync(FIXTURES, { recursive: true, encoding: 'utf8' }).filter(path =>
    path.startsWith('store-v1-'),
  )
  t.strictSame(again, golden.sort(), 'every salt, key and name')
  // Another zstd may compress otherwise; what it has no hand in is the same to the byte.
  const exact = again.filter(path => /\.(json|slot|sha256)$/.test(path))
  t.equal(exact.length, 8)
  for (const path of exact) t.ok(readFileSync(join(made, path)).equals(readFileSync(join(FIXTURES, path))), path)
  t.end()
})
