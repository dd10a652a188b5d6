import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import t from 'tap'

import { cliEnvironment } from '../demo/virtvault-cli.js'
import { requires } from '../harness/requires.js'
import { MIB } from '../lab/fill.js'
import { Lab } from '../lab/lab.js'
import { run } from '../lab/run-program.js'

const MAIN = fileURLToPath(new URL('../../src/cli/main.cjs', import.meta.url))

interface Finding {
  readonly area: string
  readonly state: string
  readonly message: string
  readonly hint?: string
}

// Real domains, on a machine that others use as well.
t.setTimeout(300_000)

t.test('doctor as users run it', { ...requires('lab', 'nbdkit'), timeout: 300_000 }, async t => {
  const lab = await Lab.start()
  t.teardown(() => lab[Symbol.asyncDispose]())
  const store = lab.path('store')
  const env = { ...cliEnvironment(lab), VIRTVAULT_TARGET: store, VIRTVAULT_CONNECT: lab.uri }
  const doctor = async (args: readonly string[] = [], more: NodeJS.ProcessEnv = {}) => {
    const options = { env: { ...env, ...more }, check: false }
    const { code, stdout } = await run(process.execPath, [MAIN, 'doctor', '--json', ...args], options)
    const { findings = [] } = JSON.parse(stdout) as { findings?: readonly Finding[] }
    return { code, find: (area: string, state: string) => findings.filter(f => f.area === area && f.state === state) }
  }
  const web = await lab.domain({
    name: 'web01',
    disks: [
      { target: 'vda', size: 16 * MIB },
      { target: 'vdb', size: MIB, format: 'raw' },
    ],
  })
  await web.start()

  await t.test('what is missing is a finding with the command that mends it, and ends with 3', async t => {
    const bare = await doctor()
    t.equal(bare.code, 3)
    t.match(bare.find('store', 'mend'), [{ message: /E_NO_STORE/, hint: /virtvault init/ }])
    t.match(bare.find('libvirt', 'ok'), [{ message: /libvirt \d+\.\d+\.\d+, QEMU \d+\./ }])
    const alone = await doctor([], { VIRTVAULT_CONNECT: 'qemu+unix:///system?socket=/nonexistent' })
    t.match(alone.find('libvirt', 'mend'), [{ message: /E_LIBVIRT_CONNECT/, hint: /virsh -c/ }])
    const folder = lab.path('path')
    mkdirSync(folder)
    symlinkSync(process.execPath, join(folder, 'node'))
    const unequipped = await doctor([], { PATH: folder })
    t.match(unequipped.find('tools', 'mend')[0], {
      message: /qemu-img is not installed/,
      hint: 'apt install qemu-utils',
    })
    t.match(unequipped.find('tools', 'note'), [{ message: /nbdkit/ }])
  })

  await run(process.execPath, [MAIN, 'init', store], { env })

  await t.test('a sound host and store end with 0', async t => {
    const { code, find } = await doctor()
    t.equal(code, 0)
    t.equal(find('tools', 'ok').length, 4)
    t.equal(find('rights', 'ok').length, 2)
    t.match(find('store', 'ok'), [{ message: /0 points of 0 domains/ }, { message: /free/ }])
    t.equal((await doctor(['web02'])).code, 4)
  })

  await t.test('disk by disk it says what the next pull does, and then that is what it does', async t => {
    const before = await doctor(['web01'])
    t.equal(before.code, 0)
    t.match(before.find('disk', 'ok'), [{ message: /vda .*in full the first time/ }])
    t.match(before.find('disk', 'note'), [{ message: /vdb \(raw.*in full every time/, hint: /qemu-img convert/ }])
    t.match(before.find('agent', 'note'), [{ message: /no channel/ }])
    t.equal(before.find('scratch', 'ok').length, 1)

    await run(process.execPath, [MAIN, 'backup', 'pull', 'web01'], { env })
    t.match((await doctor(['web01'])).find('disk', 'ok'), [{ message: /vda .*incremental since @[0-9a-f]{7}/ }])
    await web.destroy()
    t.match((await doctor(['web01'])).find('disk', 'ok'), [{ message: /incremental since/ }], 'off, it is the same')
    t.match((await doctor(['web01'])).find('domain', 'ok'), [{ message: /is off/ }])
    await web.start()
  })

  await t.test('a lost bitmap is told with its reason; looking mends nothing', async t => {
    await web.kill9()
    await web.start()
    for (const time of ['once', 'twice']) {
      const { code, find } = await doctor(['web01'])
      t.equal(code, 0, time)
      t.match(find('disk', 'note')[0], { message: /vda .*bitmap is missing or broken/, hint: /next pull/ }, time)
    }
  })

  await t.test('a backup job that is in the way is told', async t => {
    const job = lab.path('job.xml')
    const socket = join(lab.scratchFolder, 'other.sock')
    writeFileSync(job, `<domainbackup mode='pull'><server transport='unix' socket='${socket}'/></domainbackup>`)
    await lab.virsh('backup-begin', 'web01', job)
    const { code, find } = await doctor(['web01'])
    t.equal(code, 3)
    t.match(find('domain', 'mend'), [{ message: /backup job runs/, hint: /domjobabort/ }])
    await lab.virsh('domjobabort', 'web01')
  })
})
