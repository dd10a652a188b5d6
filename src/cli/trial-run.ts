import { BackupError } from '../base/errors.js'
import { formatDuration } from '../model/duration.js'
import { shortId } from '../model/point-ref.js'
import type { RecoveryPoint } from '../model/recovery-point.js'
import { formatSize } from '../model/size.js'
import type { StorePort } from '../store/store-types.js'
import type { Envelope } from './base-command.js'
import { EXIT } from './exit-codes.js'
import { plural } from './output.js'
import { findPoint, selectStored } from './points.js'
import { printable } from './printable.js'
import { connectLocal } from './restore-connect.js'
import type { RunContext } from './session.js'
import { storeGroups } from './wire.js'

/** What `verify --level restore|boot` was asked for. */
export interface TrialWishes {
  readonly level: 'restore' | 'boot'
  /** Domains, of each of which the newest point is tried, or `[DOMAIN]@REF`. */
  readonly selectors: readonly string[]
  readonly groups: readonly string[]
  readonly timeoutMs: number
  readonly consolePattern: RegExp | undefined
}

export interface TrialOutcome {
  readonly point: RecoveryPoint
  readonly ok: boolean
  readonly seconds: number
  readonly detail: string
  readonly fields: object
}

/** One after the other: each has the machine to itself. */
export async function runTrials(
  session: RunContext,
  store: StorePort,
  wishes: TrialWishes,
): Promise<readonly TrialOutcome[]> {
  const points = await choose(session, store, wishes)
  if (wishes.level === 'restore') return await tryReading(session, store, points)
  await using machine = await connectLocal(session, 'the overlays and the export of a trial')
  const { makeBootTest } = await import('./trial-wire.js')
  const test = await makeBootTest(session, store, machine)
  const outcomes: TrialOutcome[] = []
  for (const point of points) {
    const { timeoutMs, consolePattern } = wishes
    const { ok, seconds, by, detail } = await test.run({ point, timeoutMs, consolePattern }, session.signal)
    outcomes.push({ point, ok, seconds, detail, fields: { sign: by } })
  }
  return outcomes
}

async function tryReading(
  session: RunContext,
  store: StorePort,
  points: readonly RecoveryPoint[],
): Promise<readonly TrialOutcome[]> {
  const { runReadTest } = await import('./trial-wire.js')
  const outcomes: TrialOutcome[] = []
  for (const point of points) {
    const { ok, seconds, readBytes, disks, files } = await runReadTest(session, store, point)
    const lost = [...disks.map(({ disk, ranges }) => `${disk} (${plural(ranges.length, 'range')})`), ...files]
    const detail = ok ? `${formatSize(readBytes)} read` : `lost: ${lost.join(', ')}`
    const fields = {
      read_bytes: readBytes,
      disks: disks.map(({ disk, ranges }) => ({ target: disk, lost: ranges })),
      lost_files: files,
    }
    outcomes.push({ point, ok, seconds, detail, fields })
  }
  return outcomes
}

async function choose(session: RunContext, store: StorePort, wishes: TrialWishes): Promise<readonly RecoveryPoint[]> {
  const { selectors, groups } = wishes
  if (selectors.some(text => text.includes('@'))) {
    const found: RecoveryPoint[] = []
    for (const text of selectors) found.push((await findPoint(store, text)).noted.point)
    return found
  }
  const newest = new Map<string, RecoveryPoint>()
  // Newest last, within a domain.
  for (const point of await store.points.list()) newest.set(point.domain.uuid, point)
  const meant = selectStored([...newest.values()], { selectors, groups }, await storeGroups(session, groups))
  const chosen = [...newest.values()].filter(({ domain }) => meant.has(domain.uuid))
  if (chosen.length === 0) throw new BackupError('E_NOT_FOUND', 'the store has no recovery point of these domains')
  return chosen
}

export function trialLines(outcomes: readonly TrialOutcome[]): string[] {
  return outcomes.map(({ point, ok, seconds, detail }) => {
    const name = printable(`${point.domain.name}@${shortId(point.id)}`)
    return `${ok ? 'ok' : 'FAILED'}: ${name}  ${printable(detail)}, ${formatDuration(seconds * 1000)}`
  })
}

/** A point that failed is exit 7, like any damage. */
export function trialDocument(outcomes: readonly TrialOutcome[], level: 'restore' | 'boot'): Envelope {
  const isSound = outcomes.every(({ ok }) => ok)
  return {
    schema: 'virtvault/verify_trial/1',
    ok: isSound,
    status: isSound ? 'success' : 'failed',
    exit: isSound ? EXIT.ok : EXIT.damage,
    level,
    results: outcomes.map(({ point, ok, seconds, detail, fields }) => ({
      domain: point.domain.name,
      uuid: point.domain.uuid,
      point: point.id,
      ok,
      seconds,
      detail,
      ...fields,
    })),
  }
}
