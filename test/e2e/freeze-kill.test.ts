import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

import t from 'tap'

import { cliEnvironment } from '../demo/virtvault-cli.js'
import { requires } from '../harness/requires.js'
import { seededRandom } from '../harness/seeded-random.js'
import { MIB } from '../lab/fill.js'
import { Lab } from '../lab/lab.js'
import { run } from '../lab/run-program.js'

const MAIN = fileURLToPath(new URL('../../src/cli/main.cjs', import.meta.url))
/** `npm run test:freeze-kill`: every millisecond, not a few at random. */
const IS_SWEEP = process.env['FREEZE_KILL'] === 'full'
const KILLS = Number(process.env['KILLS'] ?? '8')
/** The most that a guest may stay frozen: a guardian under a pull that hangs waits ten seconds. */
const PATIENCE_MS = 30_000
/** From the look at the checkpoint until after the thaw, and the frozen part of it, as measured. */
const WINDOW_MS = 400
const FROZEN_MS = 150
const TIMEOUT_MS = IS_SWEEP ? 7_200_000 : 540_000

t.setTimeout(TIMEOUT_MS)

t.test(
  'kill -9 at any moment around freeze, begin and thaw leaves the guest thawed within seconds',
  { ...requires('lab'), timeout: TIMEOUT_MS },
  async t => {
    const lab = await Lab.start()
    t.teardown(() => lab[Symbol.asyncDispose]())
    const env = {
      ...process.env,
      ...cliEnvironment(lab),
      VIRTVAULT_TARGET: lab.path('store'),
      VIRTVAULT_CONNECT: lab.uri,
    }
    const guest = await lab.linuxGuest({
      name: 'web01',
      disks: [{ target: 'vda', size: 64 * MIB, fileSystem: 'ext4' }],
    })
    await guest.start()
    const { domain } = guest
    await run(process.execPath, [MAIN, 'init', lab.path('store')], { env })
    const random = seededRandom(Number(process.env['SEED'] ?? Date.now() % 1_000_000))

    const isThawed = async () => {
      const { stdout } = await lab.tryVirsh('qemu-agent-command', domain.uuid, '{"execute":"guest-fsfreeze-status"}')
      return stdout.includes('"thawed"')
    }
    /** Whether a pull's journal says that the guest may be frozen. */
    const isAnnounced = () => {
      const folder = join(lab.path('store'), 'jobs')
      return readdirSync(folder, { recursive: true, encoding: 'utf8' }).some(name => {
        try {
          return name.endsWith('.journal') && /"frozen":\s*true/.test(readFileSync(join(folder, name), 'latin1'))
        } catch {
          return false
        }
      })
    }
    /** Starts a pull and kills it `after` ms from the moment that it looks at its checkpoint, or announces the freeze. */
    const killedPull = async (from: 'checkpoint' | 'freeze', after: number) => {
      const args = [MAIN, 'backup', 'pull', 'web01', '--quiesce', '--progress', 'json', '--bwlimit', '16MiB']
      const child = spawn(process.execPath, args, { env, stdio: ['ignore', 'ignore', 'pipe'] })
      let said = ''
      let isOver = false
      child.stderr.on('data', (part: Buffer) => (said += part.toString()))
      const ended = once(child, 'close').then(() => (isOver = true))
      const isDue = () => said.includes('"checkpoint"') && (from === 'checkpoint' || isAnnounced())
      while (!isOver && !isDue()) await delay(2)
      await delay(after)
      child.kill('SIGKILL')
      await ended
    }

    /** What is killed, and when. */
    const moments = IS_SWEEP
      ? [
          ...Array.from({ length: WINDOW_MS / 2 }, (_, i) => ['checkpoint', 2 * i] as const),
          ...Array.from({ length: FROZEN_MS }, (_, i) => ['freeze', i] as const),
        ]
      : Array.from({ length: KILLS }, (_, n) => {
          const isLate = n % 2 === 1
          return [isLate ? 'freeze' : 'checkpoint', Math.floor(random() * (isLate ? FROZEN_MS : WINDOW_MS))] as const
        })
    let caughtFrozen = 0
    let longest = 0
    let longestFrozen = 0
    for (const [n, [from, after]] of moments.entries()) {
      await killedPull(from, after)
      const dead = performance.now()
      const wasAnnounced = isAnnounced()
      if (wasAnnounced) caughtFrozen++
      if (IS_SWEEP && wasAnnounced) {
        while (!(await isThawed()) && performance.now() - dead < PATIENCE_MS) await delay(5)
        longestFrozen = Math.max(longestFrozen, performance.now() - dead)
      }
      // Its guardian is the last who can do anything; what holds after it holds.
      while (guardiansOf(lab).length > 0 && performance.now() - dead < PATIENCE_MS) await delay(20)
      const thawed = await isThawed()
      longest = Math.max(longest, performance.now() - dead)
      if (!thawed)
        t.fail(`frozen ${Math.round(performance.now() - dead)} ms after kill ${n} (${after} ms from ${from})`)
      // What hangs for want of a thaw hangs here.
      await guest.exec(`echo ${n} > /mnt/vda/alive && sync`)
      if (IS_SWEEP && n % 25 === 24) {
        t.comment(`${n + 1} kills: ${caughtFrozen} frozen, ${Math.round(longestFrozen)} ms, ${Math.round(longest)} ms`)
      }
    }
    t.comment(`thawed at the latest ${Math.round(longestFrozen)} ms after a kill`)
    t.ok(caughtFrozen > 0, `${caughtFrozen} of ${moments.length} kills came between freeze and thaw`)
    t.comment(`the longest until all was over: ${Math.round(longest)} ms`)

    const { stdout } = await run(process.execPath, [MAIN, 'backup', 'pull', 'web01', '--quiesce=required', '--json'], {
      env,
    })
    const document = JSON.parse(stdout) as { exit: number; results: { frozen_seconds: number; quiesced: boolean }[] }
    t.match(document, { exit: 0, results: [{ quiesced: true }] })
    t.comment(`frozen for ${document.results[0]?.frozen_seconds} s`)
    const { jobs, exports, files, checkpoints } = await domain.leftovers()
    t.strictSame({ jobs, exports, files }, { jobs: [], exports: [], files: [] })
    t.ok(checkpoints.length <= 2, 'no more than the base and the one before it')
    t.equal(await isThawed(), true)
  },
)

/** Processes of this lab's guardians. */
function guardiansOf(lab: Lab): string[] {
  return readdirSync('/proc').filter(pid => {
    try {
      const isGuardian = readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('guardian')
      return isGuardian && readFileSync(`/proc/${pid}/environ`, 'utf8').includes(lab.folder)
    } catch {
      return false
    }
  })
}
