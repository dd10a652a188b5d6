import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, readdirSync } from 'node:fs'
import { open, symlink, truncate, unlink } from 'node:fs/promises'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'

import t, { type Test } from 'tap'

import { systemClock } from '../../src/base/clock.js'
import { LocalImages } from '../../src/image/local-images.js'
import { SILENT_PROGRESS } from '../../src/jobs/progress.js'
import { RestoreJob } from '../../src/jobs/restore-job.js'
import { planRestore } from '../../src/jobs/restore-plan.js'
import type { RecoveryPoint } from '../../src/model/recovery-point.js'
import { Store } from '../../src/store/store.js'
import { type Ended, MAIN } from '../harness/run-cli.js'
import { seededRandom } from '../harness/seeded-random.js'
import { CHUNK, pull, readDisk, sideOf } from './harness.js'

const run = promisify(execFile)
t.setTimeout(300_000)

const CHUNKS = 1600
const SIZE = CHUNKS * CHUNK - 512
const geometry = { size: SIZE, chunkSize: CHUNK }
/** Data, zeros and holes. */
const CONTENT = Array.from({ length: CHUNKS }, (_, i) => [i, i % 7 === 0 ? -1 : i % 11 === 0 ? 0 : i + 1] as const)

interface Scene {
  readonly folder: string
  readonly out: string
  readonly truth: string
  readonly env: NodeJS.ProcessEnv
  readonly point: RecoveryPoint
}

async function setUp(t: Test): Promise<Scene> {
  const folder = t.testdir({ out: {}, state: {}, home: {} })
  const location = join(folder, 'store')
  await Store.init(location)
  await using store = await Store.open(location)
  const { point } = await pull(store, geometry, CONTENT)
  const truth = join(folder, 'truth.raw')
  await using file = await open(truth, 'w')
  await file.write(await readDisk(store, sideOf(point)))
  const env = {
    ...process.env,
    HOME: join(folder, 'home'),
    VIRTVAULT_TARGET: location,
    VIRTVAULT_STATE_DIR: join(folder, 'state'),
  }
  return { folder, out: join(folder, 'out'), truth, env, point }
}

class Running {
  readonly ended: Promise<Ended>
  readonly #child: ChildProcess
  #stderr = ''

  constructor(args: readonly string[], env: NodeJS.ProcessEnv) {
    this.#child = spawn(MAIN, args, { env, stdio: ['ignore', 'pipe', 'pipe'] })
    let stdout = ''
    this.#child.stdout?.on('data', (part: Buffer) => (stdout += part.toString()))
    this.#child.stderr?.on('data', (part: Buffer) => (this.#stderr += part.toString()))
    this.ended = once(this.#child, 'close').then(([code]) => ({
      code: code as number | null,
      stdout,
      stderr: this.#stderr,
    }))
  }

  /** Resolves when data has been written, and not all. */
  async writes(): Promise<void> {
    const { stderr } = this.#child
    if (stderr === null) throw new Error('no stderr')
    for await (const line of createInterface({ input: stderr })) {
      if (/"disk":? ?"?vda|"target": ?"vda"/.test(line) && !/"(new|done)[a-z_]*": ?0[,}]/i.test(line)) return
    }
    throw new Error(`it ended before it wrote:\n${this.#stderr}`)
  }

  async kill(signal: NodeJS.Signals): Promise<Ended> {
    this.#child.kill(signal)
    return await this.ended
  }
}

const start = ({ env }: Scene, ...args: string[]) => new Running(['restore', ...args], env)
const stateIds = ({ folder }: Scene) =>
  existsSync(join(folder, 'state', 'restores'))
    ? readdirSync(join(folder, 'state', 'restores'))
        .filter(name => name.endsWith('.json'))
        .map(name => name.slice(0, -5))
    : []
const partials = ({ out }: Scene) => readdirSync(out).filter(name => /^\.vda\..*virtvault-[0-9a-f]{16}$/.test(name))

async function begin(scene: Scene, format: string): Promise<Running> {
  const slow = ['--bwlimit', '16MiB', '--progress', 'json', '--format', format]
  const running = start(scene, 'web01@latest', '--to', scene.out, ...slow)
  await running.writes()
  return running
}

async function isWhole(t: Test, scene: Scene, format: string): Promise<void> {
  const image = join(scene.out, `vda.${format}`)
  if (format === 'qcow2') await run('qemu-img', ['check', '-q', '-f', 'qcow2', image])
  const { stdout } = await run('qemu-img', ['compare', '-f', format, '-F', 'raw', image, scene.truth])
  t.equal(stdout.trim(), 'Images are identical.')
  t.strictSame([partials(scene), stateIds(scene)], [[], []], 'nothing else is left')
}

for (const format of ['qcow2', 'raw']) {
  t.test(`a restore to ${format} that is killed shows no image, is found again, and goes on`, async t => {
    const scene = await setUp(t)
    await (await begin(scene, format)).kill('SIGKILL')
    t.notOk(existsSync(join(scene.out, `vda.${format}`)))
    t.equal(partials(scene).length, 1)
    const [id = ''] = stateIds(scene)

    const again = await start(scene, 'web01@latest', '--to', scene.out, '--format', format).ended
    t.match(again, { code: 15, stderr: new RegExp(`--resume ${id}`) })
    const ended = await start(scene, '--resume', id, '--bwlimit', '4GiB').ended

    t.equal(ended.code, 0, ended.stderr)
    await isWhole(t, scene, format)
    t.match(await start(scene, '--resume', id).ended, { code: 4 })
  })

  t.test(
    `whatever became of the unfinished ${format} meanwhile, the image is right or the restore refuses`,
    async t => {
      const scene = await setUp(t)
      await (await begin(scene, format)).kill('SIGKILL')
      const [id = ''] = stateIds(scene)
      const [name = ''] = partials(scene)
      const partial = join(scene.out, name)

      // In data, and in what must be a hole of a raw image.
      await using file = await open(partial, 'r+')
      for (const at of [0, 3 * CHUNK + 5, 20 * CHUNK + 7]) await file.write(Buffer.alloc(9000, 0xee), 0, 9000, at)
      const moved = `${partial}.moved`
      await run('cp', ['--sparse=always', partial, moved])
      await unlink(partial)
      await symlink(moved, partial)
      t.match(await start(scene, '--resume', id).ended, { code: /^(1|15)$/ }, 'a link is not followed')
      await unlink(partial)
      await run('mv', [moved, partial])
      await truncate(partial, format === 'raw' ? SIZE + CHUNK : 40 * CHUNK)
      const ended = await start(scene, '--resume', id, '--bwlimit', '4GiB').ended

      t.equal(ended.code, 0, ended.stderr)
      await isWhole(t, scene, format)
    },
  )
}

t.test('Ctrl-C keeps what was written and says how to go on; two cannot go on at once', async t => {
  const scene = await setUp(t)
  const ended = await (await begin(scene, 'qcow2')).kill('SIGINT')
  t.equal(ended.code, 130, ended.stderr)
  const [id = ''] = stateIds(scene)
  t.match(ended.stderr, new RegExp(`--resume ${id}`))

  const first = start(scene, '--resume', id, '--bwlimit', '8MiB', '--progress', 'json')
  await first.writes()
  const second = await start(scene, '--resume', id).ended

  t.match(second, { code: 11, stderr: /E_LOCKED/ })
  t.equal((await first.kill('SIGTERM')).code, 143)
  t.equal((await start(scene, '--resume', id, '--bwlimit', '4GiB').ended).code, 0)
  await isWhole(t, scene, 'qcow2')
})

t.test('--force begins anew and removes what was unfinished', async t => {
  const scene = await setUp(t)
  await (await begin(scene, 'raw')).kill('SIGKILL')

  const ended = await start(scene, 'web01@latest', '--to', scene.out, '--format', 'raw', '--force').ended

  t.equal(ended.code, 0, ended.stderr)
  await isWhole(t, scene, 'raw')
})

t.test('killed at any moment, again and again, it ends with the right image', async t => {
  const scene = await setUp(t)
  const random = seededRandom(CHUNKS)
  for (const format of ['qcow2', 'raw']) {
    mkdirSync(scene.out, { recursive: true })
    for (let turn = 0; !existsSync(join(scene.out, `vda.${format}`)) || stateIds(scene).length > 0; turn++) {
      const [id] = stateIds(scene)
      const words = id === undefined ? ['web01@latest', '--to', scene.out, '--format', format] : ['--resume', id]
      const running = start(scene, ...words, '--bwlimit', turn < 4 ? '64MiB' : '4GiB')
      const killed = turn < 4 ? delay(300 + random() * 1500).then(() => running.kill('SIGKILL')) : undefined
      const { code, stderr } = await running.ended
      await killed
      t.ok(code === null || code === 0, `turn ${turn}: ${code} ${stderr}`)
    }
    await isWhole(t, scene, format)
    for (const name of readdirSync(scene.out)) await unlink(join(scene.out, name))
  }
})

t.test('what the image holds is neither read from the store nor written again', async t => {
  const scene = await setUp(t)
  await using store = await Store.open(scene.env['VIRTVAULT_TARGET'] ?? '')
  let readBytes = 0
  const images = new LocalImages({ output: process.stdout, openExport: () => Promise.reject(new Error('none')) })
  const attempt = async (limit: number, signal: AbortController) => {
    readBytes = 0
    const counted = {
      chunkSize: store.chunkSize,
      walkTree: store.walkTree.bind(store),
      readBlob: store.readBlob.bind(store),
      chunks: {
        read: async (...args: Parameters<typeof store.chunks.read>) => {
          readBytes += args[1].length
          if (readBytes > limit) signal.abort(new Error('enough'))
          await store.chunks.read(...args)
        },
      },
    }
    const plan = planRestore({
      point: scene.point,
      destination: { kind: 'directory', path: scene.out, format: 'qcow2' },
      onDamage: 'stop',
    })
    const partial = join(scene.out, '.vda.partial')
    const disks = plan.disks.map(one => ({ ...one, spec: { ...one.spec, partial } }))
    const ports = { store: counted, images, progress: SILENT_PROGRESS, clock: systemClock }
    const job = new RestoreJob({ ...ports, identify: store.identify.bind(store) })
    await job.run({ ...plan, disks }, signal.signal)
  }
  const dataBytes = CONTENT.filter(([, seed]) => seed > 0).length * CHUNK

  await t.rejects(attempt(dataBytes / 2, new AbortController()), { code: 'E_INTERRUPTED' })
  const firstBytes = readBytes
  await attempt(Infinity, new AbortController())

  t.ok(firstBytes > dataBytes / 2)
  // Four windows may have been read and not written.
  t.ok(readBytes < dataBytes - firstBytes + 5 * (8 << 20), `${readBytes} after ${firstBytes} of ${dataBytes}`)
})
