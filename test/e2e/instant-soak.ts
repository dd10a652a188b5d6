import { readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'

import t from 'tap'

import { isOverlay } from '../../src/image/overlay.js'
import { LabProgram, linuxPoint } from '../harness/linux-point.js'
import { requires } from '../harness/requires.js'
import { seededRandom } from '../harness/seeded-random.js'
import { MIB } from '../lab/fill.js'
import { Lab } from '../lab/lab.js'

// `npm run test:instant`, for an hour when somebody has changed something: ROUNDS=20 SEED=7 npm run test:instant
const ROUNDS = Number(process.env['ROUNDS'] ?? 5)
const SEED = Number(process.env['SEED'] ?? Date.now() % 100_000)
const KILLS = 4
/** An instant restore of this guest takes some seconds: from before it has done anything to when it is over. */
const LATEST_KILL_MS = 8000
const DISKS = [{ target: 'vda', size: 128 * MIB, fileSystem: 'ext4' }] as const
const FILL = 'echo precious > /mnt/vda/file; head -c 60000000 /dev/urandom > /mnt/vda/noise'

t.setTimeout(0)

t.test(
  'whenever it is killed, an instant restore goes on or begins again',
  { ...requires('lab'), timeout: 0 },
  async t => {
    t.comment(`SEED=${SEED}`)
    const random = seededRandom(SEED)
    await using lab = await Lab.start()
    await using program = new LabProgram(lab)
    const guest = await linuxPoint(lab, program, { disks: DISKS, command: FILL })
    const sum = await guest.exec('md5sum < /mnt/vda/noise')
    const undefine = async () => {
      await guest.domain.destroy()
      await lab.virsh('undefine', '--checkpoints-metadata', 'linux')
      // What it booted from goes with it: a restore replaces no such file.
      rmSync(join(lab.folder, 'lib/qemu/nvram/linux.kernel'), { force: true })
      rmSync(join(lab.folder, 'lib/qemu/nvram/linux.initrd'), { force: true })
    }
    const stateId = () => {
      try {
        return readdirSync(join(program.stateDir, 'instant'))
          .find(name => name.endsWith('.json'))
          ?.replace('.json', '')
      } catch {
        return undefined
      }
    }
    await undefine()

    for (let round = 0; round < ROUNDS; round++) {
      const folder = lab.path(`restored-${round}`)
      const isThere = async () => (await lab.virsh('list', '--all', '--name')).trim() === 'linux'
      for (let turn = 0; ; turn++) {
        const id = stateId()
        if (id === undefined && (await isThere())) break
        const args = id === undefined ? ['linux@latest', '--instant', '--to', folder] : ['--resume', id]
        const running = program.start('restore', ...args)
        const killed =
          turn < KILLS ? delay(random() * LATEST_KILL_MS, undefined).then(() => running.kill('SIGKILL')) : undefined
        const { code, stderr } = await running.ended
        await killed
        // Killed, done, or of one that was killed before it ran.
        t.ok(
          code === null || code === 0 || (code === 4 && /before it ran/.test(stderr)),
          `turn ${turn}: ${code} ${stderr}`,
        )
        t.comment(`round ${round}, turn ${turn}: ${args.join(' ')}: ${code ?? 'killed'}`)
      }
      await guest.waitForAgent()
      t.equal(await guest.exec('echo 3 > /proc/sys/vm/drop_caches; md5sum < /mnt/vda/noise'), sum)
      t.equal(await guest.exec('dmesg | grep -ci "i/o error" || true'), '0', 'the guest never saw an error')
      t.notOk(await isOverlay(join(folder, 'vda.qcow2')))
      t.notMatch(await lab.virsh('dumpxml', '--inactive', 'linux'), /instant-|nbd|rerror_policy/)
      await undefine()
    }
  },
)
