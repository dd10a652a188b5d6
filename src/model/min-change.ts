import type { PullPlan } from './pull-plan.js'
import type { RecoveryPoint } from './recovery-point.js'

/**
 * The bytes written since the newest point, where they are known, for every
 * disk, and fewer than `minBytes`: then a pull may be skipped, and the next
 * one starts from the same checkpoint. undefined where a pull is due, and
 * always where a disk came, went, or would be read in full.
 */
export function tooLittleChanged(
  plan: PullPlan,
  latest: RecoveryPoint | undefined,
  known: { readonly dirtyBytes: ReadonlyMap<string, number>; readonly minBytes: number },
): number | undefined {
  const before = latest?.disks.map(({ target }) => target) ?? []
  const isSameSet = plan.disks.length === before.length && plan.disks.every(({ target }) => before.includes(target))
  if (!isSameSet) return undefined
  let sum = 0
  for (const { target, base, isAudit } of plan.disks) {
    const bytes = known.dirtyBytes.get(target)
    if (base === undefined || isAudit || bytes === undefined) return undefined
    sum += bytes
  }
  return sum < known.minBytes ? sum : undefined
}
