import { throwIfAborted } from '../base/async.js'
import { BackupError } from '../base/errors.js'
import { invariant } from '../base/invariant.js'
import type { DomainRef, PointNotes, RecoveryPoint } from '../model/recovery-point.js'
import {
  type DomainRetentionPlan,
  planRetentionByDomain,
  type RetainedPoint,
  type RetentionOptions,
  type RetentionPolicy,
} from '../model/retention.js'
import type { PointCatalog } from '../store/store-types.js'

/** A point with what retention asks about it. */
export interface PrunedPoint extends RetainedPoint {
  readonly domain: DomainRef
  readonly group: string | undefined
  readonly stored: RecoveryPoint
}

/** The policy of a domain, and the group that it comes from. */
export interface DomainPolicy {
  readonly group: string | undefined
  readonly policy: RetentionPolicy
}

export type PrunePlan = readonly DomainRetentionPlan<PrunedPoint>[]

/**
 * Reads the points that `isMeant`. Rejects with E_DAMAGED where any point of
 * the store or any notes cannot be read: a hold that cannot be read must not
 * be overlooked (I12).
 */
export async function readPruned(
  points: PointCatalog,
  isMeant: (domain: DomainRef) => boolean,
): Promise<readonly { readonly point: RecoveryPoint; readonly notes: PointNotes }[]> {
  const meant = (await points.list()).filter(point => isMeant(point.domain))
  return await Promise.all(meant.map(async point => ({ point, notes: await points.notes(point) })))
}

/** What a prune would delete, and why. Pure; printing it is `--dry-run`. Throws E_USAGE for an unknown time zone. */
export function planPrune(
  points: readonly { readonly point: RecoveryPoint; readonly notes: PointNotes }[],
  policyOf: (domain: DomainRef) => DomainPolicy,
  options: RetentionOptions,
): PrunePlan {
  // A domain that was renamed goes by the name of its newest point.
  const newest = new Map<string, RecoveryPoint>()
  for (const { point } of points) {
    const known = newest.get(point.domain.uuid)
    if (known === undefined || known.sequence < point.sequence) newest.set(point.domain.uuid, point)
  }
  const policies = new Map([...newest].map(([uuid, { domain }]) => [uuid, policyOf(domain)]))
  const candidates = points.map(({ point, notes }) => ({
    id: point.id,
    time: point.time,
    sequence: point.sequence,
    tags: notes.tags,
    hold: notes.hold,
    domain: newest.get(point.domain.uuid)?.domain ?? point.domain,
    group: policies.get(point.domain.uuid)?.group,
    stored: point,
  }))
  return planRetentionByDomain(candidates, domain => policies.get(domain.uuid)?.policy ?? {}, options)
}

export function expiredOf(plan: PrunePlan): readonly PrunedPoint[] {
  return plan.flatMap(({ decisions }) =>
    decisions.filter(({ action }) => action === 'expire').map(({ point }) => point),
  )
}

/**
 * Deletes what `plan` expires, the oldest first; may be run again after a
 * crash. A point that was held since the planning stays. Gives what was
 * deleted. Rejects with E_INTERRUPTED, E_IO.
 */
export async function executePrune(
  points: PointCatalog,
  plan: PrunePlan,
  now: number,
  signal: AbortSignal,
): Promise<readonly PrunedPoint[]> {
  for (const { decisions } of plan) {
    invariant(
      decisions.length === 0 || decisions.some(({ action }) => action === 'keep'),
      'I12: no domain loses its last point',
    )
  }
  const deleted: PrunedPoint[] = []
  for (const point of expiredOf(plan).toSorted((a, b) => a.sequence - b.sequence)) {
    throwIfAborted(signal)
    const { hold } = await points.notes(point.stored)
    if (hold !== undefined && (hold.until === undefined || hold.until > now)) continue
    await points.remove(point.stored)
    deleted.push(point)
  }
  return deleted
}

/** Refuses to go on where `unreadable` names a point: what it is, and whether it is held, cannot be told. */
export function refuseUnreadable(unreadable: readonly { readonly file: string; readonly error: Error }[]): void {
  const [first] = unreadable
  if (first === undefined) return
  throw new BackupError('E_DAMAGED', `${unreadable.length} recovery points cannot be read: nothing is deleted`, {
    why: first.error.message,
    hints: ['See which: virtvault verify', 'Move the damaged file out of the store, then prune again.'],
    cause: first.error,
  })
}
