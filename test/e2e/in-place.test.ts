import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import t from 'tap'

import { cliEnvironment } from '../demo/virtvault-cli.js'
import { requires } from '../harness/requires.js'
import { seededRandom } from '../harness/seeded-random.js'
import { MIB } from '../lab/fill.js'
import { imageDamage, imageDifference, imageInfo } from '../lab/images.js'
import { Lab } from '../lab/lab.js'
import type { LabDomain } from '../lab/lab-domain.js'
import { run } from '../lab/run-program.js'

const MAIN = fileURLToPath(new URL('../../src/cli/main.cjs', import.meta.url))
const CHUNK = 64 * 1024
const SIZE = 256 * MIB

interface Ended {
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

interface RolledBack {
  readonly disks: readonly { readonly data_bytes: number; readonly zero_bytes: number; readonly since: string | null }[]
}

// Real domains, on a machine that others use as well.
t.setTimeout(600_000)

t.test(
  'restore --in-place as users run it',
  { ...requires('lab', 'qemu-nbd', 'nbdinfo'), timeout: 600_000 },
  async t => {
    const lab = await Lab.start()
    t.teardown(() => lab[Symbol.asyncDispose]())
    const store = lab.path('store')
    const env = { ...process.env, ...cliEnvironment(lab), VIRTVAULT_TARGET: store, VIRTVAULT_CONNECT: lab.uri }
    const virtvault = (args: readonly string[], onError?: (stderr: string, child: ChildProcess) => void) =>
      new Promise<Ended>((done, fail) => {
        const child = spawn(MAIN, args, { env, stdio: ['ignore', 'pipe', 'pipe'] })
        let stdout = ''
        let stderr = ''
        child.stdout.on('data', (part: Buffer) => (stdout += part.toString()))
        child.stderr.on('data', (part: Buffer) => {
          stderr += part.toString()
          onError?.(stderr, child)
        })
        child.once('error', fail)
        child.once('close', code => done({ code, stdout, stderr }))
      })
    const inPlace = (...more: string[]) => ['restore', 'web01@first', '--in-place', '--yes', ...more]

    const content = [{ kind: 'write', offset: 0, length: 160 * MIB, fill: { seed: 1 } }] as const
    const web = await lab.domain({ name: 'web01', disks: [{ target: 'vda', size: SIZE, content }] })
    await web.start()
    t.equal((await virtvault(['init', store])).code, 0)
    t.equal((await virtvault(['backup', 'pull', 'web01', '--tag', 'first'])).code, 0)
    const first = { path: await web.referenceImage('vda', 'first'), format: 'raw' }
    const image = web.disk('vda')

    await t.test('a running domain and a saved memory are refused with the way out', async t => {
      t.match(await virtvault(inPlace()), {
        code: 6,
        stderr: /not shut off.*E_DOMAIN_STATE[^]*virsh shutdown web01/,
      })
      await lab.virsh('managedsave', 'web01')
      t.match(await virtvault(inPlace()), { code: 6, stderr: /E_DOMAIN_STATE[^]*virsh managedsave-remove web01/ })
      await lab.virsh('managedsave-remove', 'web01')
      t.match(await virtvault(['restore', 'web01@first', '--in-place']), { code: 15, stderr: /--yes/ })
      t.match(await virtvault(inPlace('--define')), { code: 2, stderr: /--define does not go with --in-place/ })
    })

    await t.test('it writes the difference and nothing else, as the dry run said', async t => {
      await web.start()
      // Before the second point: data over data, data into a hole, zeros over data. After it: one of them again, and another.
      await web.write('vda', 10 * CHUNK, 3 * CHUNK, { seed: 2 })
      await web.write('vda', 200 * MIB, 2 * CHUNK, { seed: 3 })
      await web.zero('vda', 64 * MIB, CHUNK)
      t.equal((await virtvault(['backup', 'pull', 'web01'])).code, 0)
      await web.write('vda', 12 * CHUNK, 2 * CHUNK, { seed: 4 })
      await web.write('vda', 100 * MIB + 512, 512, { seed: 5 })
      await web.destroy()
      const expected = { data_bytes: (4 + 1 + 1) * CHUNK, zero_bytes: 2 * CHUNK }

      const dry = await virtvault(inPlace('-n', '--json'))
      t.match((JSON.parse(dry.stdout) as RolledBack).disks, [expected])
      t.ok(await imageDifference(image, first), 'the dry run wrote nothing')
      await run('qemu-img', ['bitmap', '--add', '-g', String(CHUNK), image.path, 'witness'])
      const ended = await virtvault(inPlace('--json'))

      t.equal(ended.code, 0, ended.stderr)
      t.match((JSON.parse(ended.stdout) as RolledBack).disks, [expected])
      t.equal(await dirtyBytes(lab, image.path, 'witness'), 8 * CHUNK, 'by QEMU’s own count')
      await run('qemu-img', ['bitmap', '--remove', image.path, 'witness'])
      t.equal(await imageDifference(image, first), undefined)
      t.equal(await imageDamage(image.path), undefined)
      t.match(JSON.parse((await virtvault(inPlace('--json'))).stdout), { disks: [{ data_bytes: 6 * CHUNK }] })
    })

    await t.test('the next pull is incremental and right', async t => {
      await web.start()
      const pulled = await virtvault(['backup', 'pull', 'web01', '--tag', 'after', '--json'])

      t.match(JSON.parse(pulled.stdout), { exit: 0, results: [{ mode: 'incremental', warnings: [] }] })
      t.equal((await virtvault(['restore', 'web01@after', '--to', lab.path('after')])).code, 0)
      const restored = { path: join(lab.path('after'), 'vda.qcow2'), format: 'qcow2' }
      t.equal(await imageDifference(restored, first), undefined)
    })

    for (const victim of ['virtvault', 'qemu-nbd'] as const) {
      await t.test(`after kill -9 of ${victim} in the middle the second try finishes`, async t => {
        if ((await web.state()) === 'shut off') await web.start()
        await scribble(web)
        t.equal((await virtvault(['backup', 'pull', 'web01'])).code, 0)
        await web.destroy()
        let isSent = false
        const killed = await virtvault(inPlace('--progress', 'json', '--json'), (stderr, child) => {
          if (isSent || !stderr.includes('"write"')) return
          isSent = true
          if (victim === 'virtvault') child.kill('SIGKILL')
          else process.kill(childOf(child.pid ?? 0), 'SIGKILL')
        })
        t.ok(isSent, 'it was killed while it wrote')
        t.not(killed.code, 0)
        if (victim === 'qemu-nbd') t.match(JSON.parse(killed.stdout), { error: { hints: [/half rolled back/] } })
        // A qemu-nbd without its client closes the image first: the next command waits for that.
        const again = await virtvault(inPlace('--json'))

        t.equal(again.code, 0, again.stderr)
        const [disk] = (JSON.parse(again.stdout) as RolledBack).disks
        t.equal(disk?.since === null, victim === 'qemu-nbd', 'a bitmap that was not closed is not believed')
        t.equal(await imageDifference(image, first), undefined)
        t.equal(await imageDamage(image.path), undefined)
      })

      await t.test(
        `and the next pull after it is ${victim === 'virtvault' ? 'incremental' : 'full'} and right`,
        async t => {
          await web.start()
          const pulled = await virtvault(['backup', 'pull', 'web01', '--tag', victim, '--json'])

          t.match(JSON.parse(pulled.stdout), { results: [{ mode: victim === 'virtvault' ? 'incremental' : 'full' }] })
          const to = lab.path(victim)
          t.equal((await virtvault(['restore', `web01@${victim}`, '--to', to])).code, 0)
          t.equal(await imageDifference({ path: join(to, 'vda.qcow2'), format: 'qcow2' }, first), undefined)
        },
      )
    }

    await t.test('killed at any moment, again and again, it finishes in the end and the image is sound', async t => {
      if ((await web.state()) === 'shut off') await web.start()
      await scribble(web)
      t.equal((await virtvault(['backup', 'pull', 'web01'])).code, 0)
      await web.destroy()
      const seed = Number(process.env['SEED'] ?? Date.now() % 1_000_000)
      t.comment(`SEED=${seed}`)
      const random = seededRandom(seed)
      for (let round = 0; round < 2; round++) {
        // From the first line of progress to the last: which of them is the moment differs each time.
        const after = Math.floor(random() * 12)
        const killed = await virtvault(inPlace('--progress', 'json', '--json'), (stderr, child) => {
          if (stderr.split('\n').length > after) child.kill('SIGKILL')
        })
        t.ok(killed.code === null || killed.code === 0, `after line ${after}: ${killed.code}`)
      }
      const measured = JSON.parse((await virtvault(inPlace('-n', '--json'))).stdout) as RolledBack
      const ended = await virtvault(inPlace('--json'))

      t.equal(ended.code, 0, ended.stderr)
      t.strictSame((JSON.parse(ended.stdout) as RolledBack).disks, measured.disks, 'as the dry run said')
      t.equal(await imageDifference(image, first), undefined)
      t.equal(await imageDamage(image.path), undefined)
    })

    await t.test('a disk that was replaced is written in full, as the dry run said', async t => {
      await run('qemu-img', ['create', '-q', '-f', 'qcow2', image.path, String(SIZE)])
      await run('qemu-io', ['-f', 'qcow2', '-c', 'write -P 5 250M 1M', image.path])

      const measured = JSON.parse((await virtvault(inPlace('-n', '--json'))).stdout) as RolledBack
      const ended = await virtvault(inPlace('--json'))

      t.match(measured.disks, [{ since: null, data_bytes: 160 * MIB, zero_bytes: SIZE - 160 * MIB }])
      t.strictSame((JSON.parse(ended.stdout) as RolledBack).disks, measured.disks)
      t.equal(await imageDifference(image, first), undefined)
      t.equal(await imageDamage(image.path), undefined)
    })

    await t.test('a disk that was resized is refused, untouched', async t => {
      await run('qemu-img', ['resize', '-q', image.path, '+64M'])
      t.match(await virtvault(inPlace()), { code: 15, stderr: /has 335544320 bytes.*E_REFUSED[^]*resized/ })
      await run('qemu-img', ['resize', '-q', '--shrink', image.path, String(SIZE)])
    })

    await t.test('an image that somebody else has open is refused, untouched', async t => {
      await using other = await serve(lab, ['-f', 'qcow2', image.path])
      t.match(await virtvault(inPlace()), { code: 6, stderr: /is in use.*E_DOMAIN_BUSY/ })
      t.ok(other.socket)
    })

    await t.test('of a disk in several layers the top one is written, in full: no bitmap knows them all', async t => {
      const overlay = lab.path('overlay.qcow2')
      await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', image.path, '-F', 'qcow2', overlay])
      await run('qemu-io', ['-f', 'qcow2', '-c', 'write -P 5 1M 1M', overlay])
      const below = await readFile(image.path)
      await writeFile(lab.path('layers.xml'), (await lab.virsh('dumpxml', 'web01')).replace(image.path, overlay))
      await lab.virsh('define', lab.path('layers.xml'))

      const ended = await virtvault(inPlace('--json'))

      t.match(JSON.parse(ended.stdout), { exit: 0, disks: [{ since: null }] })
      t.equal(await imageDifference({ path: overlay, format: 'qcow2' }, first), undefined)
      t.ok(below.equals(await readFile(image.path)), 'the image below is as it was')
    })

    t.match(await imageInfo(image.path, 'qcow2'), { format: 'qcow2', size: SIZE })
  },
)

/** Much that a rollback has to write. */
async function scribble(domain: LabDomain): Promise<void> {
  for (let at = 0; at < 128 * MIB; at += 32 * MIB) await domain.write('vda', at, 24 * MIB, { seed: at + 9 })
}

/** The one process that `parent` started. */
function childOf(parent: number): number {
  const pids = readFileSync(`/proc/${parent}/task/${parent}/children`, 'utf8').trim().split(' ').filter(Boolean)
  const found = pids.find(pid => readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('qemu-nbd'))
  if (found === undefined) throw new Error('no qemu-nbd')
  return Number(found)
}

async function dirtyBytes(lab: Lab, image: string, bitmap: string): Promise<number> {
  await using server = await serve(lab, ['-r', '-f', 'qcow2', '-B', bitmap, image])
  const uri = `nbd+unix:///?socket=${server.socket}`
  const { stdout } = await run('nbdinfo', ['--json', `--map=qemu:dirty-bitmap:${bitmap}`, uri])
  const extents = JSON.parse(stdout) as { length: number; type: number }[]
  return extents.reduce((sum, extent) => sum + (extent.type === 1 ? extent.length : 0), 0)
}

async function serve(lab: Lab, args: readonly string[]): Promise<AsyncDisposable & { readonly socket: string }> {
  const socket = lab.path('other.sock')
  // --fork: it listens when the command returns.
  await run('qemu-nbd', ['--fork', '-t', '-e', '4', `--socket=${socket}`, `--pid-file=${socket}.pid`, ...args])
  const pid = Number(readFileSync(`${socket}.pid`, 'utf8'))
  return {
    socket,
    [Symbol.asyncDispose]: async () => {
      const tail = spawn('tail', [`--pid=${pid}`, '-f', '/dev/null'])
      process.kill(pid, 'SIGTERM')
      await once(tail, 'exit')
    },
  }
}
