import t from 'tap'

import { systemClock } from '../../../src/base/clock.js'
import { BackupError } from '../../../src/base/errors.js'
import type { ProgressEvent } from '../../../src/jobs/progress.js'
import { pullDomains } from '../../../src/jobs/pull-domains.js'
import type { PullResult, TargetOutcome } from '../../../src/jobs/pull-job.js'
import type { PullRequest } from '../../../src/jobs/pull-ports.js'
import { recoveryPoint } from '../../harness/points.js'
import type { StorePort } from '../../../src/store/store-types.js'

const requestOf = (name: string): PullRequest => ({
  domain: { uuid: `uuid of ${name}`, name },
  wish: { mode: 'auto', only: [], except: [] },
  freeze: { mode: 'off', mountpoints: [], timeoutSeconds: 1 },
  scratchLimits: { minFreeBytes: 0, maxUsedBytes: undefined, intervalMs: 1 },
  tags: [],
})

function resultFor(request: PullRequest, warnings: PullResult['warnings'] = []): PullResult {
  return {
    warnings,
    point: recoveryPoint({ domain: request.domain }),
  }
}

const target = { name: 'nas', store: {} as StorePort }

function portsWith(run: (request: PullRequest) => Promise<PullResult>) {
  const events: ProgressEvent[] = []
  const progress = { report: (event: ProgressEvent) => void events.push(event) }
  const job = {
    targets: [target],
    run: async (request: PullRequest): Promise<TargetOutcome[]> =>
      run(request).then(
        result => [{ kind: 'made', target, ...result }],
        (error: unknown) => [{ kind: 'failed', target, error }],
      ),
  }
  const pullsOf = (...names: string[]) => names.map(name => ({ request: requestOf(name), job }))
  return { events, pullsOf, ports: { progress, clock: systemClock } }
}

const { signal } = new AbortController()

t.test('a domain that fails does not keep the others back', async t => {
  const { ports, pullsOf, events } = portsWith(async request => {
    if (request.domain.name === 'b') throw new BackupError('E_AGENT', 'silent')
    return resultFor(request)
  })

  const outcomes = await pullDomains(ports, { pulls: pullsOf('a', 'b', 'c'), parallel: 1 }, signal)

  t.match(outcomes, [
    { status: 'success', domain: { name: 'a' } },
    { status: 'failed', error: { code: 'E_AGENT' } },
    { status: 'success', domain: { name: 'c' } },
  ])
  t.equal(events.filter(({ kind }) => kind === 'finished').length, 3)
})

t.test('no more domains run at once than asked for', async t => {
  let running = 0
  let most = 0
  const { ports, pullsOf } = portsWith(async request => {
    most = Math.max(most, ++running)
    await new Promise(resolve => setImmediate(resolve))
    running--
    return resultFor(request)
  })

  await pullDomains(ports, { pulls: pullsOf('a', 'b', 'c', 'd', 'e'), parallel: 2 }, signal)

  t.equal(most, 2)
})

t.test('after an abort no further domain is begun', async t => {
  const controller = new AbortController()
  const begun: string[] = []
  const { ports, pullsOf } = portsWith(async request => {
    begun.push(request.domain.name)
    controller.abort(new BackupError('E_INTERRUPTED', 'enough'))
    throw controller.signal.reason
  })

  const outcomes = await pullDomains(ports, { pulls: pullsOf('a', 'b'), parallel: 1 }, controller.signal)

  t.strictSame(begun, ['a'])
  t.match(outcomes, [{ error: { code: 'E_INTERRUPTED' } }, { error: { code: 'E_INTERRUPTED' } }])
})

t.test('a point that lacks a disk is partial', async t => {
  const { ports, pullsOf } = portsWith(async request =>
    resultFor(request, [{ code: 'W_DISK_SKIPPED', message: 'vdb' }]),
  )

  t.match(await pullDomains(ports, { pulls: pullsOf('a'), parallel: 1 }, signal), [{ status: 'partial' }])
})

t.test('a target that fails leaves the domain partial, with one outcome per target', async t => {
  const { ports, events } = portsWith(async request => resultFor(request))
  const offsite = { ...target, name: 'offsite' }
  const job = {
    targets: [target, offsite],
    run: async (request: PullRequest): Promise<TargetOutcome[]> => [
      { kind: 'made', target, ...resultFor(request) },
      { kind: 'failed', target: offsite, error: new BackupError('E_NO_SPACE', 'full') },
    ],
  }

  const outcomes = await pullDomains(ports, { pulls: [{ request: requestOf('a'), job }], parallel: 1 }, signal)

  t.match(outcomes, [
    { status: 'success', target: 'nas', domain: { name: 'a' } },
    { status: 'failed', target: 'offsite', error: { code: 'E_NO_SPACE' } },
  ])
  t.match(
    events.filter(({ kind }) => kind === 'finished'),
    [{ status: 'partial', error: { code: 'E_NO_SPACE' } }],
  )
})
