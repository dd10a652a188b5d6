import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

import t from 'tap'

import { Store } from '../../src/store/store.js'
import {
  FIXTURES,
  GOLDEN_BELOW,
  GOLDEN_PASSPHRASES,
  GOLDEN_STORES,
  goldenBase,
  sha256,
  sumsOf,
} from '../golden/golden.js'
import { requires } from '../harness/requires.js'
import { CHEAP_SCRYPT, CHUNK, given, pull } from './harness.js'

const READER = fileURLToPath(new URL('../../../test/golden/read_store.py', import.meta.url))
const run = promisify(execFile)

// A process for each disk and file.
t.setTimeout(180_000)

const read = (args: readonly string[], passphrase?: string) =>
  run('python3', ['-B', READER, ...args], { env: { ...process.env, VIRTVAULT_PASSPHRASE: passphrase } })

/** Everything that the reader finds in a store, in the form of sumsOf(). */
async function sumsByReader(location: string, folder: string, passphrase?: string): Promise<string[]> {
  const { stdout } = await read(['list', location], passphrase)
  const lines: string[] = []
  for (const line of stdout.trimEnd().split('\n')) {
    const [id = '', , , , disks = '', files = ''] = line.split(' ')
    const wanted = [
      ...disks.split(',').map(disk => ['restore', disk.split(':')[0] ?? ''] as const),
      ...files.split(',').flatMap(name => (name === '-' ? [] : [['file', name] as const])),
    ]
    for (const [verb, name] of wanted) {
      const out = join(folder, 'out')
      await read([verb, location, id, name, out], passphrase)
      lines.push(`${sha256(readFileSync(out))}  ${id}/${name}`)
    }
  }
  return lines.sort()
}

for (const name of GOLDEN_STORES) {
  const passphrase = name.endsWith('encrypted') ? GOLDEN_PASSPHRASES[0] : undefined
  t.test(`a reader written from docs/format.md restores what ${name} was made of`, requires('python3'), async t => {
    const sums = await sumsByReader(join(FIXTURES, name), t.testdir(), passphrase)

    t.equal(`${sums.join('\n')}\n`, readFileSync(join(FIXTURES, `${name}.sha256`), 'utf8'))
  })
}

t.test(
  'the reader restores what leaves out an image with that image, and with no other',
  requires('python3'),
  async t => {
    const location = join(FIXTURES, GOLDEN_BELOW)
    const folder = t.testdir({ base: goldenBase(), other: goldenBase().fill(1, 0, 1) })
    const out = join(folder, 'out')
    const wanted = readFileSync(join(FIXTURES, `${GOLDEN_BELOW}.sha256`), 'utf8')
      .trimEnd()
      .split('\n')

    for (const line of wanted) {
      const [sum, id = '', disk = ''] = line.split(/ {2}|\//)
      await read(['restore', location, id, disk, out, join(folder, 'base')])
      t.equal(sha256(readFileSync(out)), sum, line)
      await t.rejects(read(['restore', location, id, disk, out]), { message: /template.qcow2.*name a raw copy/ })
      await t.rejects(read(['restore', location, id, disk, out, join(folder, 'other')]), { message: /does not hold/ })
    }
  },
)

t.test('the reader takes any passphrase and an exported key, and refuses a wrong one', requires('python3'), async t => {
  const location = join(FIXTURES, 'store-v1-encrypted')
  const [, key = ''] = /exported key \| `(VVKEY1-[0-9A-Z-]+)`/.exec(formatPage()) ?? []

  for (const secret of [...GOLDEN_PASSPHRASES, key]) {
    t.match((await read(['list', location], secret)).stdout, /datenbank/)
  }
  await t.rejects(read(['list', location], 'wrong'), { message: /the passphrase is wrong/ })
  await t.rejects(read(['list', location]), { message: /set VIRTVAULT_PASSPHRASE/ })
})

t.test('the reader restores what this program writes today', requires('python3'), async t => {
  const folder = t.testdir()
  for (const passphrase of [undefined, 'today']) {
    const location = join(folder, passphrase ?? 'plain')
    const encryption = passphrase === undefined ? undefined : { passphrase, cost: CHEAP_SCRYPT }
    await Store.init(location, { encryption })
    await using store = await Store.open(location, {
      passphrase: passphrase === undefined ? undefined : given(passphrase),
    })
    const geometry = { size: 200 * CHUNK + 512, chunkSize: CHUNK }
    const first = await pull(store, geometry, [
      [0, 1],
      [150, 2],
      [200, 3],
    ])
    await pull(store, geometry, [[150, 9]], first.point)

    t.strictSame(await sumsByReader(location, folder, passphrase), await sumsOf(store))
  }
})

t.test('the worked example in docs/format.md is what the fixture has', t => {
  const pack = readFileSync(join(FIXTURES, 'store-v1-plain/packs/5d/5dac89c523284a667f4dbb84ae5e7818.pack'))
  const lines = [...formatPage().matchAll(/^([0-9a-f]{4}) {2}((?:[0-9a-f]{2}(?: |$))+)/gm)]

  t.equal(lines.length, 16)
  for (const [, offset = '', hex = ''] of lines) {
    const bytes = Buffer.from(hex.replaceAll(' ', ''), 'hex')
    const at = Number.parseInt(offset, 16)
    t.equal(pack.subarray(at, at + bytes.length).toString('hex'), bytes.toString('hex'), offset)
  }
  t.end()
})

function formatPage(): string {
  return readFileSync(fileURLToPath(new URL('../../../docs/format.md', import.meta.url)), 'utf8')
}
