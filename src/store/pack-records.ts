import { throwIfAborted } from '../base/async.js'
import { errorCodeOf } from '../base/errors.js'
import type { PackEntry } from '../format/pack.js'
import { ID_BYTES, RECORD_HEADER_BYTES } from '../format/record.js'
import { native } from '../native/binding.js'
import { RECORD_STATUS } from '../native/codec.js'
import type { StoreKeys } from './keys.js'
import { packKeyOf } from './layout.js'
import type { Locator } from './locator.js'
import type { ObjectStore } from './object-store.js'

/** Of one batch, in the pack. */
const MAX_READ_BYTES = 8 * 1024 * 1024
/** Of one batch, decoded. */
const MAX_PLAIN_BYTES = 16 * 1024 * 1024
const MAX_RECORDS = 16_384
/** Bytes of no interest that are read along rather than beginning another read. */
const MAX_GAP_BYTES = 128 * 1024

export interface PackRecordsParts {
  readonly objects: ObjectStore
  readonly locator: Locator
  readonly keys: StoreKeys
}

/** Neighbouring records of one kind, decoded. */
export interface RecordBatch {
  readonly kind: number
  readonly entries: readonly PackEntry[]
  readonly ids: Uint8Array
  readonly plain: Uint8Array
  /** Pairs (offset, length) in `plain`. */
  readonly spans: Uint32Array
  /** One of RECORD_STATUS each; what is not ok is zeroed. */
  readonly statuses: Uint8Array
}

/**
 * Reads records of one pack in the order of `entries`, each checked against
 * its id, whatever the index thinks of them. What cannot be read has a bad
 * status. Rejects with E_INTERRUPTED, E_NO_SPACE.
 */
export async function* readPackRecords(
  parts: PackRecordsParts,
  pack: { readonly id: string; readonly entries: readonly PackEntry[] },
  signal: AbortSignal,
): AsyncGenerator<RecordBatch> {
  for (const entries of batchesOf(pack.entries)) {
    throwIfAborted(signal)
    yield await readBatch(parts, pack.id, entries)
  }
}

async function readBatch(parts: PackRecordsParts, pack: string, entries: readonly PackEntry[]): Promise<RecordBatch> {
  const start = entries[0]?.offset ?? 0
  const ids = new Uint8Array(entries.length * ID_BYTES)
  const spans = new Uint32Array(entries.length * 2)
  let plainBytes = 0
  entries.forEach((entry, at) => {
    ids.set(entry.id, at * ID_BYTES)
    spans.set([plainBytes, entry.plainLength], 2 * at)
    plainBytes += entry.plainLength
  })
  const plain = new Uint8Array(plainBytes)
  const kind = entries[0]?.kind ?? 0
  const batch = { kind, entries, ids, plain, spans }
  try {
    const bytes = Buffer.allocUnsafeSlow(endOf(entries.at(-1)) - start)
    const length = await parts.objects.read(packKeyOf(pack), bytes, start)
    const cipher = await parts.locator.cipher(pack)
    const statuses = await native().decodeRecords(bytes.subarray(0, length ?? 0), plain, {
      offsets: Uint32Array.from(entries, entry => entry.offset - start),
      ids,
      kind,
      outSpans: spans,
      cipher,
      idKey: parts.keys.idKey,
    })
    return { ...batch, statuses }
  } catch (error) {
    const code = errorCodeOf(error)
    if (code !== 'E_DAMAGED' && code !== 'E_IO') throw error
    return { ...batch, statuses: new Uint8Array(entries.length).fill(RECORD_STATUS.badHeader) }
  }
}

/** Neighbours of one kind within the limits. */
function* batchesOf(entries: readonly PackEntry[]): Generator<readonly PackEntry[]> {
  let batch: PackEntry[] = []
  let plainBytes = 0
  for (const entry of entries) {
    const [first, last] = [batch[0], batch.at(-1)]
    const fits =
      first === undefined ||
      (batch.length < MAX_RECORDS &&
        first.kind === entry.kind &&
        plainBytes + entry.plainLength <= MAX_PLAIN_BYTES &&
        entry.offset - endOf(last) <= MAX_GAP_BYTES &&
        endOf(entry) - first.offset <= MAX_READ_BYTES)
    if (!fits) {
      yield batch
      batch = []
      plainBytes = 0
    }
    batch.push(entry)
    plainBytes += entry.plainLength
  }
  if (batch.length > 0) yield batch
}

function endOf(entry: PackEntry | undefined): number {
  return entry === undefined ? 0 : entry.offset + RECORD_HEADER_BYTES + entry.storedLength
}
