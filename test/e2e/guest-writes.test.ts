import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

import t from 'tap'

import { Hypervisor } from '../../src/libvirt/hypervisor.js'
import { cliEnvironment } from '../demo/virtvault-cli.js'
import { requires } from '../harness/requires.js'
import { MIB } from '../lab/fill.js'
import { Lab } from '../lab/lab.js'
import { run } from '../lab/run-program.js'

const MAIN = fileURLToPath(new URL('../../src/cli/main.cjs', import.meta.url))
const GOES_ON = new AbortController().signal
/** What a pull leaves free, and 96 MiB for scratch: more than the steady writes take, less than the large one. */
const SCRATCH_BYTES = 608 * MIB
/** How long each rate is measured; for figures worth keeping `WINDOW_SECONDS=20`. */
const WINDOW_MS = 1000 * Number(process.env['WINDOW_SECONDS'] ?? '2')
/** Writes that show that it goes on. */
const SOME_WRITES = 5

t.setTimeout(300_000)

t.test('what hangs beside a guest never stops it', { ...requires('lab'), timeout: 300_000 }, async t => {
  // Mounted before the lab starts, so that its QEMUs see them too.
  const folder = mkdtempSync(join(tmpdir(), 'virtvault-writes-'))
  const [small, slow, image] = [join(folder, 'small'), join(folder, 'slow'), join(folder, 'image')]
  await run('mkdir', [small, slow])
  await run('mount', ['-t', 'tmpfs', '-o', `size=${SCRATCH_BYTES}`, 'tmpfs', small])
  await run('truncate', ['--size', String(512 * MIB), image])
  await run('mkfs.ext4', ['-q', image])
  await run('mount', ['-o', 'loop', image, slow])
  /** Lets nobody write to the store: who tries hangs in the kernel. */
  const holdStore = () => run('fsfreeze', ['--freeze', slow])
  const releaseStore = () => run('fsfreeze', ['--unfreeze', slow], { check: false })
  t.teardown(async () => {
    await releaseStore()
    for (const place of [small, slow]) await run('umount', ['--lazy', place], { check: false })
    rmSync(folder, { recursive: true })
  })

  await using lab = await Lab.start()
  const env = {
    ...process.env,
    ...cliEnvironment(lab),
    VIRTVAULT_TARGET: join(slow, 'store'),
    VIRTVAULT_CONNECT: lab.uri,
  }
  await run(process.execPath, [MAIN, 'init'], { env })
  const guest = await lab.linuxGuest({ name: 'web01', disks: [{ target: 'vda', size: 256 * MIB, fileSystem: 'ext4' }] })
  await guest.start()
  await guest.exec('dd if=/dev/urandom of=/mnt/vda/file bs=1M count=128 conv=fsync')
  const { domain } = guest

  let suspended = 0
  const listening = new AbortController()
  await using hypervisor = await Hypervisor.open(lab.uri, {}, GOES_ON)
  const events = (async () => {
    for await (const event of hypervisor.events(listening.signal)) {
      if (event.kind === 'lifecycle' && event.event === 3) suspended++
    }
  })()

  // 256 KiB at a random place, each durable before the next.
  const loop =
    'n=0; while :; do dd if=/dev/zero of=/mnt/vda/file bs=256k count=1 seek=$(($RANDOM % 128)) conv=notrunc,fsync; ' +
    'n=$((n+1)); echo $n > /run/count; done'
  await guest.exec(`echo 0 > /run/count; (${loop}) > /dev/null 2>&1 &`)
  const count = async () => Number(await guest.exec('cat /run/count'))
  /** Writes per second over a while. */
  const rate = async () => {
    const [before, from] = [await count(), performance.now()]
    await delay(WINDOW_MS)
    const after = await count()
    return ((after - before) / (performance.now() - from)) * 1000
  }
  const goesOn = async (writes: number) => {
    const before = await count()
    while ((await count()) < before + writes) await delay(50)
  }
  const jobs = async () => (await lab.tryVirsh('domjobinfo', domain.uuid)).stdout
  const untilNoJob = async () => {
    while (!/^Job type:\s*None/m.test(await jobs())) await delay(50)
  }

  /** A pull that reads for minutes, and has begun to. */
  const slowPull = async (more: NodeJS.ProcessEnv = {}, rate = '1MiB') => {
    const args = [MAIN, 'backup', 'pull', 'web01', '--no-quiesce', '--progress', 'json', '--bwlimit', rate]
    const child = spawn(process.execPath, args, { env: { ...env, ...more }, stdio: ['ignore', 'ignore', 'pipe'] })
    const pull = { child, said: '', ended: once(child, 'close') }
    child.stderr.on('data', (part: Buffer) => (pull.said += part.toString()))
    while (!/"total_bytes":[1-9]/.test(pull.said) && child.exitCode === null) await delay(20)
    t.equal(child.exitCode, null, 'it reads')
    return pull
  }
  const interrupt = async ({ child, ended }: { child: ChildProcess; ended: Promise<unknown> }) => {
    child.kill('SIGINT')
    await ended
    await untilNoJob()
  }
  const rates: Record<string, number> = {}

  await t.test('a pull at 1 MiB/s, whose store hangs, and that is stopped itself, lets it write', async t => {
    rates['alone'] = await rate()
    const pull = await slowPull()
    rates['pull at 1 MiB/s'] = await rate()
    await holdStore()
    await goesOn(SOME_WRITES)
    rates['store hangs'] = await rate()
    await releaseStore()
    pull.child.kill('SIGSTOP')
    await goesOn(SOME_WRITES)
    rates['pull stopped'] = await rate()
    pull.child.kill('SIGCONT')
    await interrupt(pull)
    rates['alone again'] = await rate()

    t.equal(suspended, 0)
    for (const [what, perSecond] of Object.entries(rates)) t.comment(`${what}: ${perSecond.toFixed(1)} writes/s`)
  })

  await t.test('a pull that is stopped for longer than it may is ended by its guardian', async t => {
    const pull = await slowPull({ VIRTVAULT_STALL_LIMIT: '2s' })
    pull.child.kill('SIGSTOP')
    const from = performance.now()
    await untilNoJob()
    t.comment(`its job was over ${Math.round(performance.now() - from)} ms after the stop`)

    t.strictSame(await pull.ended, [null, 'SIGKILL'])
    t.match(pull.said, /the backup hangs \(it said nothing for \d+ s\)/)
    await goesOn(SOME_WRITES)
    t.equal(suspended, 0)
  })

  await t.test('a stopped pull whose scratch fills is ended sooner, and what was paused is resumed', async t => {
    const pull = await slowPull({ VIRTVAULT_SCRATCH_DIR: small, VIRTVAULT_STALL_LIMIT: '10m' })
    pull.child.kill('SIGSTOP')
    await guest.exec('(dd if=/dev/urandom of=/mnt/vda/file bs=1M count=128 conv=notrunc,fsync) > /dev/null 2>&1 &')
    await untilNoJob()

    t.strictSame(await pull.ended, [null, 'SIGKILL'])
    t.match(pull.said, /the backup hangs \(.*scratch/)
    await goesOn(SOME_WRITES)
    t.equal(await domain.state(), 'running')
  })

  await t.test('a pull whose store hangs is given up before its scratch is full all the same', async t => {
    const before = suspended
    const pull = await slowPull({ VIRTVAULT_SCRATCH_DIR: small }, '16MiB')
    await holdStore()
    while (!isHungIn(pull.child.pid ?? 0)) await delay(20)
    await guest.exec('(dd if=/dev/urandom of=/mnt/vda/file bs=1M count=128 conv=notrunc,fsync) > /dev/null 2>&1 &')
    await untilNoJob()
    await goesOn(SOME_WRITES)

    t.equal(pull.child.exitCode, null, 'it waits for its store')
    await releaseStore()
    t.strictSame(await pull.ended, [13, null], pull.said.slice(-2000))
    t.equal(suspended, before, 'never paused')
  })

  await run(process.execPath, [MAIN, 'backup', 'abort', 'web01'], { env })
  listening.abort()
  await events
  await domain.destroy()
})

/** Whether a thread of the process waits in the kernel for a disk. */
function isHungIn(pid: number): boolean {
  return readdirSync(`/proc/${pid}/task`).some(id =>
    readFileSync(`/proc/${pid}/task/${id}/stat`, 'utf8').split(') ')[1]?.startsWith('D'),
  )
}
