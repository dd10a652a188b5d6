import type { NodeSource } from './tree-nodes.js'
import type { PackCatalog } from './pack-catalog.js'
import { PackCensus } from './pack-census.js'
import { Reachability, type Root, SHARED } from './reachability.js'
import type { StoreUsage } from './store-types.js'

/**
 * What each label of `roots` holds alone, and all of them together: one walk
 * over the unique nodes, whatever trees share. Everything outside `roots` must
 * be among them with a label of its own, or "alone" would be a lie. Rejects
 * with E_DAMAGED, E_IO, E_INTERRUPTED.
 */
export async function measureUsage(
  store: { readonly nodes: NodeSource; readonly packs: PackCatalog; readonly chunkSize: number },
  roots: readonly Root[],
  signal: AbortSignal,
): Promise<StoreUsage> {
  await using census = await PackCensus.take(store.packs, { isDamaged: () => false }, signal)
  await using marked = await Reachability.mark(roots, store, signal)
  const alone = new Map<number, { storedBytes: number; plainBytes: number }>()
  const usage = { storedBytes: 0, plainBytes: 0, referencedBytes: 0, records: 0 }
  const liveness = await census.join(
    [marked],
    {
      onLive: ({ bytes, plainBytes, label, references }) => {
        usage.records++
        usage.storedBytes += bytes
        usage.plainBytes += plainBytes
        usage.referencedBytes += plainBytes * references
        if (label === SHARED) return
        const own = alone.get(label) ?? { storedBytes: 0, plainBytes: 0 }
        alone.set(label, { storedBytes: own.storedBytes + bytes, plainBytes: own.plainBytes + plainBytes })
      },
    },
    signal,
  )
  const packBytes = census.packs.reduce((sum, pack) => sum + pack.size, 0)
  return { ...usage, alone, packBytes, missing: liveness.missing }
}
