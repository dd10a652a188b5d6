import type { RecoveryPoint } from './recovery-point.js'

export type UsageBy = 'domain' | 'group' | 'point'

/** Points that are accounted for together. */
export interface UsageGroup {
  readonly name: string
  readonly points: readonly RecoveryPoint[]
}

/** Splits points for an account; `groupOf` gives the group of a domain. Sorted by name; points newest last. */
export function groupPoints(
  points: readonly RecoveryPoint[],
  by: UsageBy,
  groupOf: (domain: RecoveryPoint['domain']) => string | undefined,
): readonly UsageGroup[] {
  const newestNames = new Map(points.map(({ domain }) => [domain.uuid, domain.name]))
  const parts = new Map<string, { name: string; points: RecoveryPoint[] }>()
  for (const point of points) {
    const { key, name } = keyOf(point, by, { newestNames, groupOf })
    const part = parts.get(key) ?? { name, points: [] }
    part.points.push(point)
    parts.set(key, part)
  }
  return [...parts.values()].sort(
    (a, b) => a.name.localeCompare(b.name) || (a.points[0]?.sequence ?? 0) - (b.points[0]?.sequence ?? 0),
  )
}

function keyOf(
  point: RecoveryPoint,
  by: UsageBy,
  names: {
    readonly newestNames: ReadonlyMap<string, string>
    readonly groupOf: (domain: RecoveryPoint['domain']) => string | undefined
  },
): { key: string; name: string } {
  const domain = names.newestNames.get(point.domain.uuid) ?? point.domain.name
  switch (by) {
    case 'domain':
      return { key: point.domain.uuid, name: domain }
    case 'group': {
      const group = names.groupOf({ uuid: point.domain.uuid, name: domain }) ?? '(no group)'
      return { key: group, name: group }
    }
    case 'point':
      return { key: point.id, name: `${domain}@${point.id.slice(0, 7)}` }
  }
}
