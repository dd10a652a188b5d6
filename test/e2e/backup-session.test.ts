import { existsSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import t, { type Test } from 'tap'

import { systemClock } from '../../src/base/clock.js'
import { undoDeadSession, LiveBackupSession } from '../../src/libvirt/backup-session.js'
import {
  deleteCheckpoint,
  deleteOtherCheckpoints,
  listCheckpoints,
  probeCheckpoint,
} from '../../src/libvirt/checkpoints.js'
import { Hypervisor } from '../../src/libvirt/hypervisor.js'
import type { SessionRequest } from '../../src/libvirt/session-types.js'
import { native } from '../../src/native/binding.js'
import { requires } from '../harness/requires.js'
import { FakeAgent } from '../lab/fake-agent.js'
import { MIB } from '../lab/fill.js'
import type { LabDomain } from '../lab/lab-domain.js'
import { Lab } from '../lab/lab.js'

const PREFIX = 'virtvault-0a1b2c3d-'
// Dozens of domains are started, on a machine that others use as well.
t.setTimeout(300_000)

const GOES_ON = new AbortController().signal

t.test('backup sessions on a real domain', { ...requires('lab'), timeout: 300_000 }, async t => {
  const lab = await Lab.start()
  t.teardown(() => lab[Symbol.asyncDispose]())
  const hypervisor = await Hypervisor.open(lab.uri, {}, GOES_ON)
  t.teardown(() => hypervisor[Symbol.asyncDispose]())

  let count = 0
  const newDomain = async (t: Test, targets = ['vda', 'vdb']): Promise<LabDomain> => {
    const disks = targets.map(target => ({ target, size: 16 * MIB }))
    const domain = await lab.domain({ name: `d${++count}`, disks })
    await domain.start()
    t.teardown(() => domain.destroy().catch(() => undefined))
    return domain
  }
  const requestFor = (domain: LabDomain, overrides: Partial<SessionRequest> = {}): SessionRequest => {
    const name = String(++count).padStart(16, '0')
    return {
      domain: { uuid: domain.uuid, name: domain.name },
      socket: join(lab.scratchFolder, `${name}.sock`),
      checkpoint: `${PREFIX}${name}`,
      disks: domain.disks.map(({ target }) => ({
        target,
        scratch: { kind: 'file', path: join(lab.scratchFolder, `${name}-${target}`) },
        tracked: true,
        base: undefined,
      })),
      freeze: { mode: 'off', mountpoints: [], timeoutSeconds: 5 },
      scratchLimits: { minFreeBytes: 0, maxUsedBytes: undefined, intervalMs: 50 },
      onFreeze: () => Promise.resolve(),
      ...overrides,
    }
  }
  const since = (request: SessionRequest, base: string): SessionRequest => ({
    ...request,
    disks: request.disks.map(disk => ({ ...disk, base })),
  })
  /** A committed session: its checkpoint stays. */
  const commit = async (request: SessionRequest): Promise<string> => {
    await using session = await LiveBackupSession.begin(hypervisor, request, GOES_ON)
    await session.end()
    await session.keepCheckpoint()
    return session.checkpoint!.name
  }
  const traces = async (domain: LabDomain) => {
    const { jobs, exports, files, checkpoints, bitmaps } = await domain.leftovers()
    return [...jobs, ...exports, ...files, ...checkpoints, ...bitmaps]
  }

  await t.test('a session serves every disk, and leaving it without a commit leaves nothing', async t => {
    const domain = await newDomain(t)
    const request = requestFor(domain)
    {
      await using session = await LiveBackupSession.begin(hypervisor, request, GOES_ON)

      t.match(session.disks, [
        { target: 'vda', exportName: 'vda', incremental: false, bitmap: undefined, size: 16 * MIB },
        { target: 'vdb', exportName: 'vdb', incremental: false, bitmap: undefined, size: 16 * MIB },
      ])
      t.ok(statSync(session.address.socket!).isSocket())
      t.match(session.checkpoint, { name: request.checkpoint, disks: ['vda', 'vdb'], xml: /<creationTime>/ })
      t.equal(session.consistency.kind, 'crash')
      t.ok(Math.abs(session.time - systemClock.now()) < 60_000)
      t.equal(session.failure.aborted, false)
    }
    t.strictSame(await traces(domain), [])
  })

  await t.test('a session that was committed keeps its checkpoint and nothing else', async t => {
    const domain = await newDomain(t)
    const request = requestFor(domain)
    await commit(request)

    const { jobs, exports, files, checkpoints } = await domain.leftovers()
    t.strictSame([jobs, exports, files, checkpoints], [[], [], [], [request.checkpoint]])
  })

  await t.test('a session since a sound checkpoint is incremental on every disk', async t => {
    const domain = await newDomain(t)
    const base = await commit(requestFor(domain))
    await using session = await LiveBackupSession.begin(hypervisor, since(requestFor(domain), base), GOES_ON)

    t.match(session.disks, [
      { target: 'vda', incremental: true, bitmap: 'backup-vda', base },
      { target: 'vdb', incremental: true, bitmap: 'backup-vdb', base },
    ])
    t.strictSame(session.warnings, [])
  })

  await t.test('a broken bitmap makes its own disk full and no other', async t => {
    const domain = await newDomain(t)
    const base = await commit(requestFor(domain))
    await removeBitmap(lab, domain, { target: 'vdb', bitmap: base })
    const request = since(requestFor(domain), base)
    await using session = await LiveBackupSession.begin(hypervisor, request, GOES_ON)

    t.match(session.disks, [
      { target: 'vda', incremental: true, bitmap: 'backup-vda', base },
      { target: 'vdb', incremental: false, bitmap: undefined, base: undefined },
    ])
    t.match(session.warnings, [{ code: 'W_CHAIN', message: /^vdb: / }])
    t.equal(session.warnings.length, 1)
  })

  await t.test('a checkpoint that libvirt does not know makes every disk full', async t => {
    const domain = await newDomain(t)
    const request = since(requestFor(domain), `${PREFIX}ffffffffffffffff`)
    await using session = await LiveBackupSession.begin(hypervisor, request, GOES_ON)

    t.strictSame(
      session.disks.map(disk => disk.incremental),
      [false, false],
    )
    t.strictSame(
      session.warnings.map(({ code }) => code),
      ['W_CHAIN', 'W_CHAIN'],
    )
  })

  await t.test('QEMU killed: the next session is full, and the old checkpoint can be deleted', async t => {
    const domain = await newDomain(t)
    const base = await commit(requestFor(domain))
    await domain.kill9()
    await domain.start()
    const ref = { uuid: domain.uuid, name: domain.name }
    t.strictSame([...(await listCheckpoints(hypervisor, ref, PREFIX))], [base], 'libvirt still lists it')
    {
      await using session = await LiveBackupSession.begin(hypervisor, since(requestFor(domain), base), GOES_ON)
      t.strictSame(
        session.disks.map(disk => disk.incremental),
        [false, false],
      )
    }
    await deleteCheckpoint(hypervisor, ref, base)
    t.strictSame(await traces(domain), [])
  })

  await t.test('deleting a checkpoint of which one bitmap is missing removes the other one too', async t => {
    const domain = await newDomain(t)
    const base = await commit(requestFor(domain))
    await removeBitmap(lab, domain, { target: 'vda', bitmap: base })

    await deleteCheckpoint(hypervisor, { uuid: domain.uuid, name: domain.name }, base)

    t.strictSame(await traces(domain), [])
    await deleteCheckpoint(hypervisor, { uuid: domain.uuid, name: domain.name }, base)
  })

  await t.test('a job of somebody else is E_DOMAIN_BUSY at once, and is left alone', async t => {
    const domain = await newDomain(t)
    const theirs = requestFor(domain, { checkpoint: undefined })
    await using _other = await LiveBackupSession.begin(hypervisor, theirs, GOES_ON)
    const ours = requestFor(domain)
    const before = performance.now()

    await t.rejects(LiveBackupSession.begin(hypervisor, ours, GOES_ON), {
      code: 'E_DOMAIN_BUSY',
      why: /a backup is under way/,
    })

    t.ok(performance.now() - before < 2_000, 'libvirt itself would have waited 30 s')
    t.strictSame(await domain.checkpoints(), [])
    await undoDeadSession(hypervisor, { ...deadOf(ours), frozen: false })
    t.equal((await domain.leftovers()).jobs.length > 0, true, 'still there')
  })

  await t.test('names that are taken are refused, and what carries them stays', async t => {
    const domain = await newDomain(t)
    const first = requestFor(domain)
    await commit(first)
    const second = requestFor(domain)
    writeFileSync(second.socket, 'of somebody else')

    await t.rejects(LiveBackupSession.begin(hypervisor, first, GOES_ON), { code: 'E_EXISTS' })
    await t.rejects(LiveBackupSession.begin(hypervisor, second, GOES_ON), { code: 'E_EXISTS' })

    t.strictSame(await domain.checkpoints(), [first.checkpoint])
    t.equal(readFileSync(second.socket, 'utf8'), 'of somebody else')
    rmSync(second.socket)
  })

  await t.test('a begin that libvirt refuses leaves nothing', async t => {
    const domain = await newDomain(t)
    const request = requestFor(domain)
    const disks = request.disks.map(disk => ({ ...disk, scratch: { kind: 'file' as const, path: '/nonexistent/x' } }))

    await t.rejects(LiveBackupSession.begin(hypervisor, { ...request, disks }, GOES_ON), { code: 'E_LIBVIRT' })

    t.strictSame(await traces(domain), [])
  })

  await t.test('a domain that is off is E_DOMAIN_STATE, and one that is unknown E_NOT_FOUND', async t => {
    const domain = await newDomain(t)
    await domain.destroy()

    await t.rejects(LiveBackupSession.begin(hypervisor, requestFor(domain), GOES_ON), { code: 'E_DOMAIN_STATE' })
    await t.rejects(hypervisor.lookup('no-such-domain'), { code: 'E_NOT_FOUND' })
  })

  await t.test('a domain that stops during a session aborts it as E_SOURCE_GONE', async t => {
    const domain = await newDomain(t)
    const request = requestFor(domain)
    {
      await using session = await LiveBackupSession.begin(hypervisor, request, GOES_ON)
      const failed = aborted(session.failure)
      await domain.destroy()
      t.match(await failed, { code: 'E_SOURCE_GONE' })
    }
    t.notOk(existsSync(request.socket), 'the socket that QEMU left was removed')
  })

  await t.test('a job that somebody else ends aborts its session as E_SOURCE_GONE', async t => {
    const domain = await newDomain(t)
    {
      await using session = await LiveBackupSession.begin(hypervisor, requestFor(domain), GOES_ON)
      const failed = aborted(session.failure)
      await lab.virsh('domjobabort', domain.uuid)
      t.match(await failed, { code: 'E_SOURCE_GONE', why: /somebody else/ })
    }
    t.strictSame(await traces(domain), [])
  })

  await t.test('scratch beyond its limit aborts the session as E_NO_SPACE, and the domain runs on', async t => {
    const domain = await newDomain(t)
    await domain.write('vda', 0, 8 * MIB, 1)
    const scratchLimits = { minFreeBytes: 0, maxUsedBytes: 4 * MIB, intervalMs: 20 }
    {
      await using session = await LiveBackupSession.begin(hypervisor, requestFor(domain, { scratchLimits }), GOES_ON)
      const failed = aborted(session.failure)
      await domain.write('vda', 0, 8 * MIB, 2)
      t.match(await failed, { code: 'E_NO_SPACE' })
    }
    t.equal(await domain.state(), 'running')
    t.strictSame(await traces(domain), [])
  })

  await t.test('without room for scratch nothing is begun', async t => {
    const domain = await newDomain(t)
    const scratchLimits = { minFreeBytes: 2 ** 50, maxUsedBytes: undefined, intervalMs: 50 }

    await t.rejects(LiveBackupSession.begin(hypervisor, requestFor(domain, { scratchLimits }), GOES_ON), {
      code: 'E_NO_SPACE',
    })
    t.strictSame(await traces(domain), [])
  })

  await t.test('a daemon killed and restarted during a session does not end it', async t => {
    const domain = await newDomain(t)
    const request = requestFor(domain)
    {
      await using session = await LiveBackupSession.begin(hypervisor, request, GOES_ON)
      await lab.restartDaemon({ signal: 'SIGKILL' })
      t.equal(session.failure.aborted, false)
      await session.end()
      t.strictSame(session.warnings, [])
    }
    t.strictSame(await traces(domain), [])
  })

  await t.test('what a dead run left is undone by its names, twice without harm', async t => {
    const domain = await newDomain(t)
    const request = requestFor(domain)
    await using _dead = await LiveBackupSession.begin(hypervisor, request, GOES_ON)

    t.strictSame(await undoDeadSession(hypervisor, { ...deadOf(request), frozen: false }), [])
    t.strictSame(await traces(domain), [])
    t.strictSame(await undoDeadSession(hypervisor, { ...deadOf(request), frozen: false }), [])
  })

  await t.test('checkpoints of others and those to keep are not deleted', async t => {
    const domain = await newDomain(t)
    const names: string[] = []
    for (let i = 0; i < 3; i++) names.push(await commit(requestFor(domain)))
    const foreign = await commit(requestFor(domain, { checkpoint: 'other-tool-1' }))
    const ref = { uuid: domain.uuid, name: domain.name }

    const { deleted, warnings } = await deleteOtherCheckpoints(hypervisor, ref, {
      prefix: PREFIX,
      keep: new Set([names[2]!]),
    })

    t.strictSame([deleted, warnings], [names.slice(0, 2), []])
    t.strictSame(await domain.checkpoints(), [names[2], foreign])
  })

  await t.test('a checkpoint whose metadata libvirt lost is redefined and sound', async t => {
    const domain = await newDomain(t)
    await using session = await LiveBackupSession.begin(hypervisor, requestFor(domain), GOES_ON)
    await session.end()
    await session.keepCheckpoint()
    const ref = { uuid: domain.uuid, name: domain.name }
    const checkpoint = session.checkpoint!
    await lab.virsh('checkpoint-delete', domain.uuid, checkpoint.name, '--metadata')

    const health = await probeCheckpoint(hypervisor, ref, checkpoint)

    t.equal(health.known, true)
    t.strictSame([...health.soundDisks], ['vda', 'vdb'])
    t.strictSame(await probeCheckpoint(hypervisor, ref, { ...checkpoint, name: 'x', xml: '<nonsense/>' }), {
      known: false,
      soundDisks: new Set(),
    })
  })

  await t.test('without an agent auto goes on crash-consistent, and required refuses', async t => {
    const domain = await newDomain(t)
    const auto = { mode: 'auto', mountpoints: [], timeoutSeconds: 1 } as const
    {
      await using session = await LiveBackupSession.begin(hypervisor, requestFor(domain, { freeze: auto }), GOES_ON)
      t.match(session.consistency, { kind: 'crash', reason: /agent/ })
      t.match(session.warnings, [{ code: 'W_NOT_QUIESCED' }])
    }
    const required = requestFor(domain, { freeze: { ...auto, mode: 'required' } })
    await t.rejects(LiveBackupSession.begin(hypervisor, required, GOES_ON), { code: 'E_AGENT' })
    t.strictSame(await traces(domain), [])
  })

  await t.test('with an agent', async t => {
    const domain = await lab.domain({ name: 'agent', agent: 'fake', disks: [{ target: 'vda', size: 16 * MIB }] })
    await using agent = await FakeAgent.listen(domain.agentSocket)
    await domain.start()
    t.teardown(() => domain.destroy().catch(() => undefined))
    const freeze = { mode: 'required', mountpoints: [], timeoutSeconds: 2 } as const

    await t.test('the domain is frozen at begin and thawed when the session has begun', async t => {
      const told: boolean[] = []
      const onFreeze = (frozen: boolean) => {
        told.push(frozen)
        return Promise.resolve()
      }
      await using session = await LiveBackupSession.begin(hypervisor, requestFor(domain, { freeze, onFreeze }), GOES_ON)

      t.equal(session.consistency.kind, 'filesystem')
      t.ok(session.consistency.frozenMs! < 5_000, `${session.consistency.frozenMs} ms`)
      t.equal(agent.isFrozen, false)
      t.strictSame(told, [true, false])
    })

    await t.test('a begin that fails thaws', async t => {
      const request = requestFor(domain, { freeze })
      const disks = request.disks.map(disk => ({ ...disk, scratch: { kind: 'file' as const, path: '/nonexistent/x' } }))
      await t.rejects(LiveBackupSession.begin(hypervisor, { ...request, disks }, GOES_ON), { code: 'E_LIBVIRT' })

      t.equal(agent.isFrozen, false)
    })

    await t.test('what was begun before the signal was seen is undone', async t => {
      const cancel = new AbortController()
      let begun: readonly string[] = []
      const onFreeze = async (frozen: boolean) => {
        if (frozen) return
        begun = await domain.checkpoints()
        cancel.abort()
      }
      const request = requestFor(domain, { freeze, onFreeze })
      await t.rejects(LiveBackupSession.begin(hypervisor, request, cancel.signal), { code: 'E_INTERRUPTED' })

      t.strictSame(begun, [request.checkpoint], 'it had begun')
      t.strictSame(await traces(domain), [])
    })

    await t.test('a domain that a dead run froze is thawed and frozen anew', async t => {
      await hypervisor.connection.fsFreeze(domain.uuid, [])
      await using session = await LiveBackupSession.begin(hypervisor, requestFor(domain, { freeze }), GOES_ON)

      t.equal(session.consistency.kind, 'filesystem')
      t.equal(agent.isFrozen, false)
    })

    await t.test('an agent that does not answer in time is E_AGENT, and nothing stays frozen', async t => {
      agent.moods.set('guest-fsfreeze-freeze', 'hang')
      await t.rejects(LiveBackupSession.begin(hypervisor, requestFor(domain, { freeze }), GOES_ON), { code: 'E_AGENT' })
      agent.moods.clear()

      t.equal(agent.isFrozen, false)
      t.strictSame(await traces(domain), [])
    })
  })

  await t.test('five calls that libvirt lets wait do not hold up the rescue connection', async t => {
    const domain = await newDomain(t)
    const request = requestFor(domain, { checkpoint: undefined })
    const connection = await native().virtConnect({ uri: lab.uri })
    await using session = await LiveBackupSession.begin(hypervisor, request, GOES_ON)
    // Each waits for the lock of the domain that the session holds.
    const socket = join(lab.scratchFolder, 'never.sock')
    const xml =
      `<domainbackup mode='pull'><server transport='unix' socket='${socket}'/>` +
      `<disks><disk name='no-such-disk'/></disks></domainbackup>`
    const blocked = Array.from({ length: 5 }, () => connection.backupBegin(domain.uuid, xml, undefined, 0))
    const settled = Promise.allSettled(blocked)
    const before = performance.now()

    t.match(await connection.jobStats(domain.uuid), { type: 2, operation: 9 })
    t.equal(await connection.abortJob(domain.uuid), true)

    t.ok(performance.now() - before < 2_000, `${performance.now() - before} ms`)
    await session.end()
    t.match(await settled, Array(5).fill({ status: 'rejected' }))
    await connection.close()
  })
})

function deadOf(request: SessionRequest) {
  return {
    domain: request.domain,
    socket: request.socket,
    scratchFiles: request.disks.map(disk => disk.scratch.path),
    checkpoint: request.checkpoint,
  }
}

async function aborted(signal: AbortSignal): Promise<unknown> {
  const stay = setInterval(() => undefined, 1000)
  if (!signal.aborted) await new Promise(resolve => signal.addEventListener('abort', resolve, { once: true }))
  clearInterval(stay)
  return signal.reason
}

/** As a crash or another tool could: the bitmap of one disk is gone while libvirt thinks that it is there. */
async function removeBitmap(
  lab: Lab,
  domain: LabDomain,
  { target, bitmap }: { target: string; bitmap: string },
): Promise<void> {
  const qmp = async (execute: string, args: object): Promise<unknown> => {
    const command = JSON.stringify({ execute, arguments: args })
    return (JSON.parse(await lab.virsh('qemu-monitor-command', domain.uuid, command)) as { return: unknown }).return
  }
  const nodes = (await qmp('query-named-block-nodes', { flat: true })) as {
    'node-name': string
    file: string
    drv: string
  }[]
  const node = nodes.find(each => each.file === domain.disk(target).path && each.drv === 'qcow2')!
  await qmp('block-dirty-bitmap-remove', { node: node['node-name'], name: bitmap })
}
