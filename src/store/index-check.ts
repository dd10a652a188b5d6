import { throwIfAborted } from '../base/async.js'
import { errorCodeOf } from '../base/errors.js'
import { toHex } from '../base/hex.js'
import { INDEX_VALUE_BYTES, type PackState, decodePlace } from '../format/index-value.js'
import { PACK_HEADER_BYTES } from '../format/pack.js'
import { ID_BYTES, RECORD_HEADER_BYTES } from '../format/record.js'
import type { IndexHolder } from './index-holder.js'
import type { PackCatalog, PackContents } from './pack-catalog.js'

/** How an index compares with the packs. Sound where all but the first three are 0. */
export interface IndexReport {
  /** Files below packs/. */
  readonly packs: number
  /** Of those, never sealed or without a footer that can be read: writes under way or cut off. */
  readonly openPacks: number
  readonly entries: number
  /** Sealed packs that the index does not know. */
  readonly unknownPacks: number
  /** Packs that the index knows and that are gone, or have another size. */
  readonly stalePacks: number
  /** Entries with a wrong checksum, of no known pack, or beyond its end. */
  readonly badEntries: number
  /** Records of sealed packs whose ids the index does not find anywhere. */
  readonly missingEntries: number
}

/**
 * Compares every entry with the packs and every footer with the index; reads
 * no payload and changes nothing but what opening an index completes anyway. A
 * gc or pull meanwhile shows as entries that are stale or missing.
 */
export async function checkIndex(
  parts: { readonly index: IndexHolder; readonly packs: PackCatalog },
  signal: AbortSignal,
): Promise<IndexReport> {
  const { index, packs } = parts
  const states = await index.use(open => open.packs())
  const listed = await packs.list()
  const report = { packs: listed.length, openPacks: 0, unknownPacks: 0, stalePacks: 0, missingEntries: 0 }
  for (const pack of listed) {
    throwIfAborted(signal)
    const contents = await readIntact(packs, pack)
    if (contents === undefined) {
      report.openPacks++
      continue
    }
    if (states.get(pack)?.sealed !== true) report.unknownPacks++
    else if (states.get(pack)?.size !== contents.state.size) report.stalePacks++
    const ids = Buffer.concat(contents.entries.map(entry => entry.id))
    const values = await index.use(open => open.getMany(ids))
    report.missingEntries += contents.entries.filter(({ id }, at) => placeAt(id, values, at) === undefined).length
  }
  const there = new Set(listed)
  report.stalePacks += [...states.keys()].filter(pack => !there.has(pack)).length
  return { ...report, ...(await checkEntries(index, states, signal)) }
}

async function checkEntries(
  index: IndexHolder,
  states: ReadonlyMap<string, PackState>,
  signal: AbortSignal,
): Promise<{ readonly entries: number; readonly badEntries: number }> {
  let [entries, badEntries] = [0, 0]
  await index.use(async open => {
    ;[entries, badEntries] = [0, 0]
    for await (const { ids, values } of open.iterate()) {
      throwIfAborted(signal)
      for (let at = 0; at < ids.length / ID_BYTES; at++) {
        entries++
        const place = placeAt(ids.subarray(at * ID_BYTES, (at + 1) * ID_BYTES), values, at)
        const state = place === undefined ? undefined : states.get(toHex(place.packId))
        if (place === undefined || state === undefined || !isWithin(place, state.size)) badEntries++
      }
    }
  })
  return { entries, badEntries }
}

async function readIntact(packs: PackCatalog, pack: string): Promise<PackContents | undefined> {
  try {
    return await packs.read(pack)
  } catch (error) {
    if (errorCodeOf(error) === 'E_DAMAGED') return undefined
    throw error
  }
}

function placeAt(id: Uint8Array, values: Uint8Array, at: number): ReturnType<typeof decodePlace> {
  return decodePlace(id, values.subarray(at * INDEX_VALUE_BYTES, (at + 1) * INDEX_VALUE_BYTES))
}

function isWithin(place: { readonly offset: number; readonly storedLength: number }, size: number): boolean {
  if (place.offset < PACK_HEADER_BYTES || place.offset > size) return false
  return RECORD_HEADER_BYTES <= size - place.offset && place.storedLength <= size - place.offset - RECORD_HEADER_BYTES
}
