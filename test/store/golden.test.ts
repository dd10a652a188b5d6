import { execFileSync } from 'node:child_process'
import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import t from 'tap'

import { Store } from '../../src/store/store.js'
import { FIXTURES, GOLDEN_PASSPHRASES, GOLDEN_STORES, copyGolden, sumsOf } from '../golden/golden.js'
import { given } from './harness.js'

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
  t.equal(exact.length, 6)
  for (const path of exact) t.ok(readFileSync(join(made, path)).equals(readFileSync(join(FIXTURES, path))), path)
  t.end()
})
