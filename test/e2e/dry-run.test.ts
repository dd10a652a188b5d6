import { readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import t from 'tap'

import { cliEnvironment } from '../demo/virtvault-cli.js'
import { requires } from '../harness/requires.js'
import { MIB } from '../lab/fill.js'
import { imageDifference } from '../lab/images.js'
import { Lab } from '../lab/lab.js'
import type { LabDomain } from '../lab/lab-domain.js'
import { run } from '../lab/run-program.js'

const MAIN = fileURLToPath(new URL('../../src/cli/main.cjs', import.meta.url))
const KIB = 1024

interface Result {
  readonly domain: string
  readonly status: string
  readonly changed_bytes?: number
  readonly disks: readonly {
    readonly target: string
    readonly mode: string
    readonly why?: string
    readonly dirty_bytes?: number
    readonly allocated_bytes?: number
  }[]
}

t.setTimeout(300_000)

t.test('what a pull would do, and when it does nothing', { ...requires('lab'), timeout: 300_000 }, async t => {
  const lab = await Lab.start()
  t.teardown(() => lab[Symbol.asyncDispose]())
  const store = lab.path('store')
  const env = { ...cliEnvironment(lab), VIRTVAULT_TARGET: store, VIRTVAULT_CONNECT: lab.uri }
  const virtvault = (...args: readonly string[]) => run(process.execPath, [MAIN, ...args], { env, check: false })
  const results = async (...args: readonly string[]) => {
    const { stdout, stderr } = await virtvault(...args, '--json')
    return { stderr, document: JSON.parse(stdout) as { exit: number; status: string; results: readonly Result[] } }
  }
  const points = async () => (JSON.parse((await virtvault('list', '--json')).stdout) as { points: object[] }).points
  const content = [{ kind: 'write', offset: 0, length: 4 * MIB, fill: { seed: 3 } }] as const
  const web01 = await lab.domain({
    name: 'web01',
    disks: [
      { target: 'vda', size: 64 * MIB, content },
      { target: 'vdb', size: 32 * MIB, format: 'raw', content },
    ],
  })
  const db01 = await lab.domain({ name: 'db01', disks: [{ target: 'vda', size: 64 * MIB, content }] })
  await web01.start()
  await db01.start()
  t.equal((await virtvault('init', store)).code, 0)

  /** What a dry run says, once it is known that it has changed nothing. */
  const forecast = async (domain: LabDomain) => {
    const before = [filesBelow(store), await domain.leftovers(), await domain.state()]
    const { document, stderr } = await results('backup', 'pull', domain.name, '-n')
    t.same([filesBelow(store), await domain.leftovers(), await domain.state()], before, 'nothing has changed')
    t.equal(document.exit, 0, stderr)
    return document.results[0]!
  }

  await t.test('before the first point everything would be read, as much as is allocated', async t => {
    const { disks } = await forecast(web01)

    t.match(disks, [
      { target: 'vda', mode: 'full', why: 'the first recovery point' },
      { target: 'vdb', mode: 'full', why: 'the first recovery point' },
    ])
    t.ok(disks.every(({ allocated_bytes: bytes = 0 }) => bytes >= 4 * MIB && bytes < 8 * MIB))
    t.match(await virtvault('backup', 'pull', 'web01', '-n'), { code: 0, stdout: /Nothing was changed/ })
    t.same(await points(), [])
  })

  for (const [name, prepare] of [
    ['of a domain that runs', () => Promise.resolve()],
    ['of a domain that is off', () => db01.destroy()],
  ] as const) {
    await t.test(`it says to the byte what an incremental ${name} then reads`, async t => {
      await results('backup', 'pull', 'db01')
      await db01.write('vda', 10 * MIB + 17, 64 * KIB, 0x11)
      await db01.write('vda', 30 * MIB, 100, 0x12)
      await prepare()

      const { disks } = await forecast(db01)
      const pulled = await results('backup', 'pull', 'db01')

      t.match(disks, [{ target: 'vda', mode: 'incremental', dirty_bytes: 3 * 64 * KIB }])
      t.equal(pulled.document.results[0]?.disks[0]?.dirty_bytes, 3 * 64 * KIB)
    })

    await t.test(`with --min-change ${name} a point is made only where enough has changed`, async t => {
      const { checkpoints } = await db01.leftovers()
      const before = await points()
      await db01.write('vda', 40 * MIB, 128 * KIB, 0x21)

      const skipped = await results('backup', 'pull', 'db01', '--min-change', '192KiB')
      t.match(skipped.document, {
        exit: 0,
        status: 'skipped',
        results: [{ status: 'skipped', changed_bytes: 128 * KIB }],
      })
      t.same((await db01.leftovers()).checkpoints, checkpoints, 'the checkpoint did not advance')
      t.same(await points(), before)
      const text = await virtvault('backup', 'pull', 'db01', '--min-change', '192KiB')
      t.match(text.stdout, /^db01 {2}@[0-9a-f]{7} {2}skipped {2}128 KiB changed/)
      t.match((await virtvault('job', 'history', '--json')).stdout, /"status": ?"skipped"/)

      await db01.write('vda', 50 * MIB, 64 * KIB, 0x22)
      const held = await db01.referenceImage('vda', `held-${name.length}`)
      const pulled = await results('backup', 'pull', 'db01', '--min-change', '192KiB')
      t.match(pulled.document, { exit: 0, results: [{ status: 'success', disks: [{ dirty_bytes: 192 * KIB }] }] })
      const folder = lab.path(`r-${name.length}`)
      t.equal((await virtvault('restore', 'db01@latest', '--to', folder, '--format', 'raw')).code, 0)
      const restored = { path: join(folder, 'vda.raw'), format: 'raw' }
      t.equal(await imageDifference(restored, { path: held, format: 'raw' }), undefined)
    })
  }

  await t.test('a disk that is always read in full is never too little to be stored', async t => {
    await results('backup', 'pull', 'web01')
    const { document } = await results('backup', 'pull', 'web01', '--min-change', '1GiB')
    t.match(document, { exit: 0, results: [{ status: 'success' }] })
    t.match((await forecast(web01)).disks, [
      { mode: 'incremental', dirty_bytes: 0 },
      { mode: 'full', why: /raw/ },
    ])
  })

  await t.test('a lost checkpoint is announced, and a domain that is not there is an error', async t => {
    for (const name of (await web01.leftovers()).checkpoints) await lab.virsh('checkpoint-delete', 'web01', name)
    t.match((await forecast(web01)).disks[0], { mode: 'full', why: /checkpoint is gone/ })
    t.match(await virtvault('backup', 'pull', 'nobody', '-n'), { code: 4 })
    t.match(await virtvault('backup', 'pull', 'web01', '-n', '--disk', 'vdz'), { code: 4 })
  })
})

/** Each file below with its size and time; the index, which reading may tidy, left out. */
function filesBelow(folder: string): string[] {
  return readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .filter(path => !path.startsWith('index'))
    .map(path => ({ path, found: statSync(join(folder, path)) }))
    .filter(({ found }) => found.isFile())
    .map(({ path, found }) => `${path} ${found.size} ${found.mtimeMs}`)
    .sort()
}
