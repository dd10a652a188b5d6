import { errorCodeOf, messageOf, type Warning } from '../base/errors.js'
import type { PullWish } from '../model/pull-plan.js'
import type { DomainRef, RecoveryPoint } from '../model/recovery-point.js'
import type { StorePort } from '../store/store-types.js'

/** Tag of a point whose W_BITMAP somebody has seen to. */
export const BITMAP_ACKNOWLEDGED = 'bitmap-acknowledged'

type Points = Pick<StorePort, 'points'>

/** What a pull builds on, as the store has it. */
export interface PullBase {
  /** The newest point; undefined where there is none, or it cannot be told. */
  readonly latest: RecoveryPoint | undefined
  /** As asked for, or full where the bitmaps are not to be trusted. */
  readonly wish: PullWish
  readonly warnings: readonly Warning[]
}

/**
 * Looks for the point to build on. A point file that cannot be read must not
 * keep the domain from being backed up: it might be the newest, so nothing is
 * built on. Where a dirty bitmap was caught missing writes, and nobody has
 * acknowledged it, nothing is inherited either.
 */
export async function findPullBase(
  { points }: StorePort | Points,
  domain: DomainRef,
  wish: PullWish,
): Promise<PullBase> {
  let latest: RecoveryPoint | undefined
  try {
    latest = await points.latest(domain.uuid)
  } catch (error) {
    if (errorCodeOf(error) !== 'E_DAMAGED') throw error
    const message = `a recovery point cannot be read, so everything is read: ${messageOf(error)}`
    return { latest: undefined, wish, warnings: [{ code: 'W_CHAIN', message }] }
  }
  const suspicion = await suspicionOf({ points }, latest)
  if (suspicion === undefined) return { latest, wish, warnings: [] }
  return { latest, wish: { ...wish, mode: 'full' }, warnings: [suspicion] }
}

async function suspicionOf({ points }: Points, latest: RecoveryPoint | undefined): Promise<Warning | undefined> {
  if (latest?.warnings.some(({ code }) => code === 'W_BITMAP') !== true) return undefined
  if ((await points.notes(latest)).tags.includes(BITMAP_ACKNOWLEDGED)) return undefined
  const point = `@${latest.id.slice(0, 7)}`
  return {
    code: 'W_BITMAP',
    message:
      `the dirty bitmap was wrong at ${point} or before, so everything is read until somebody has looked into it ` +
      `and says so:   virtvault tag ${point} +${BITMAP_ACKNOWLEDGED}`,
  }
}
