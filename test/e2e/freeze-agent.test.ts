import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

import t from 'tap'

import { cliEnvironment } from '../demo/virtvault-cli.js'
import { requires } from '../harness/requires.js'
import { FakeAgent } from '../lab/fake-agent.js'
import { MIB } from '../lab/fill.js'
import { Lab } from '../lab/lab.js'
import { run } from '../lab/run-program.js'

const MAIN = fileURLToPath(new URL('../../src/cli/main.cjs', import.meta.url))

t.setTimeout(180_000)

t.test('an agent that misbehaves leaves nothing frozen', { ...requires('lab'), timeout: 180_000 }, async t => {
  await using lab = await Lab.start()
  // They wait for agents most of the time.
  t.jobs = 3
  const env = {
    ...process.env,
    ...cliEnvironment(lab),
    VIRTVAULT_TARGET: lab.path('store'),
    VIRTVAULT_CONNECT: lab.uri,
  }
  await run(process.execPath, [MAIN, 'init'], { env })
  const guestWith = async (name: string) => {
    const domain = await lab.domain({ name, agent: 'fake', disks: [{ target: 'vda', size: 16 * MIB }] })
    const agent = await FakeAgent.listen(domain.agentSocket)
    await domain.start()
    return {
      domain,
      agent,
      pull: (how: string) => run(process.execPath, [MAIN, 'backup', 'pull', name, how], { env, check: false }),
    }
  }
  const untilThawed = async (agent: FakeAgent) => {
    while (agent.isFrozen) await delay(50)
  }

  const test1 = t.test(
    'one that freezes long after its time limit is thawed when it does',
    { buffered: true },
    async t => {
      const { domain, agent, pull } = await guestWith('late')
      agent.moods.set('guest-fsfreeze-freeze', 'stall')
      const { code, stderr } = await pull('--quiesce')
      t.equal(agent.isFrozen, false)
      const begun = agent.received('guest-fsfreeze-freeze')
      agent.wake()
      await begun
      await untilThawed(agent)

      t.equal(code, 0, stderr)
      t.match(stderr, /W_NOT_QUIESCED|was not frozen/)
      t.ok(agent.commands.includes('guest-fsfreeze-freeze'), 'it did freeze')
      t.strictSame((await domain.leftovers()).jobs, [])
      await domain.destroy()
      await agent[Symbol.asyncDispose]()
    },
  )

  const test2 = t.test(
    'one that hangs in its thaw is asked until it thaws, though the backup has failed',
    { buffered: true },
    async t => {
      const { domain, agent, pull } = await guestWith('hangs')
      agent.moods.set('guest-fsfreeze-thaw', 'stall')
      const { code, stderr } = await pull('--quiesce')
      t.equal(agent.isFrozen, true)
      t.strictSame((await domain.leftovers()).jobs, [], 'its job is over')
      agent.wake()
      await untilThawed(agent)

      t.not(code, 0)
      t.match(stderr, /may still be FROZEN/)
      await domain.destroy()
      await agent[Symbol.asyncDispose]()
    },
  )

  const test3 = t.test(
    'one that dies while the guest is frozen: no point, no job, and a word about it',
    { buffered: true },
    async t => {
      const { domain, agent, pull } = await guestWith('dies')
      agent.moods.set('guest-fsfreeze-thaw', 'die')
      const { code, stderr } = await pull('--quiesce')

      t.not(code, 0)
      t.match(stderr, /may still be FROZEN/)
      const { jobs, checkpoints } = await domain.leftovers()
      t.strictSame({ jobs, checkpoints }, { jobs: [], checkpoints: [] })
      await domain.destroy()
      await agent[Symbol.asyncDispose]()
    },
  )
  await Promise.all([test1, test2, test3])
})
