import { parsePointRef, type PointRef, resolvePointRef } from '../model/point-ref.js'
import type { RecoveryPoint } from '../model/recovery-point.js'
import { selectDomains } from '../model/selector.js'
import type { StorePort } from '../store/store-types.js'
import type { NotedPoint } from './point-view.js'

/**
 * The point that the user means, with its notes. Tags are the ones that hold
 * now. Rejects with E_USAGE, E_NOT_FOUND, and what listing rejects with.
 */
export async function findPoint(
  store: Pick<StorePort, 'points'>,
  text: string,
): Promise<{ readonly noted: NotedPoint; readonly ref: PointRef }> {
  const ref = parsePointRef(text)
  const points = await store.points.list()
  const noted = await Promise.all(points.map(async point => ({ point, notes: await store.points.notes(point) })))
  const candidates = noted.map(({ point, notes }) => ({ ...point, tags: notes.tags }))
  const found = resolvePointRef(ref, candidates, localTimeZone())
  const match = noted.find(({ point }) => point.id === found.id)
  // resolvePointRef() gives back one of its candidates.
  if (match === undefined) throw new Error(`bug: ${found.id} is not among the points it was chosen from`)
  return { noted: match, ref }
}

/** Where dates on the command line are read. */
export function localTimeZone(): string {
  return Intl.DateTimeFormat().resolvedOptions().timeZone
}

/**
 * The domains of the store that selectors and groups mean; all of them where
 * nothing is said. Every name that a domain ever had in this store finds it.
 * Rejects with E_NOT_FOUND, E_USAGE.
 */
export function selectStored(
  points: readonly RecoveryPoint[],
  asked: { readonly selectors: readonly string[]; readonly groups: readonly string[] },
  groups: ReadonlyMap<string, readonly string[]>,
): ReadonlySet<string> {
  const domains = new Map(points.map(({ domain }) => [`${domain.uuid} ${domain.name}`, domain]))
  if (asked.selectors.length === 0 && asked.groups.length === 0) {
    return new Set([...domains.values()].map(({ uuid }) => uuid))
  }
  const selected = selectDomains([...domains.values()], asked, groups)
  return new Set(selected.domains.map(({ uuid }) => uuid))
}
