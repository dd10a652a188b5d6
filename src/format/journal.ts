import { isHex } from '../base/hex.js'
import type { PullJournal } from '../model/pull-journal.js'
import { decodeCheckedJson, encodeCheckedJson } from './checked-json.js'
import { expectIntact } from './damage.js'
import { ENVELOPE_MAGIC, decodeEnvelope, encodeEnvelope } from './envelope.js'
import { Fields } from './fields.js'
import type { PointExpectation, PointSeal } from './point.js'

const WHAT = 'the journal of a run'

/** JSON for people in a plain store; sealed like a point in an encrypted one, and bound to its run, the name of its file. */
export function encodeJournal(runId: string, journal: PullJournal, seal: PointSeal): Uint8Array {
  const map = {
    run_id: runId,
    kind: journal.kind,
    domain_uuid: journal.domainUuid,
    domain_name: journal.domainName,
    uri: journal.uri,
    checkpoint: journal.checkpoint,
    base_checkpoint: journal.baseCheckpoint,
    socket: journal.socket,
    scratch: journal.scratch,
    frozen: journal.frozen,
  }
  return seal.key === undefined
    ? encodeCheckedJson(map)
    : encodeEnvelope(map, { ...seal, magic: ENVELOPE_MAGIC.journal })
}

/** Throws E_DAMAGED, also for another run's journal; in an encrypted store for one that is not sealed. */
export function decodeJournal(runId: string, bytes: Uint8Array, expected: JournalExpectation): PullJournal {
  const value = expected.encrypted
    ? decodeEnvelope(bytes, { ...expected, magic: ENVELOPE_MAGIC.journal })
    : decodeCheckedJson(bytes, WHAT)
  const fields = new Fields(value, WHAT)
  const owner = fields.text('run_id')
  expectIntact(isHex(owner, 32) && owner === runId, WHAT, 'it belongs to another run')
  return {
    kind: fields.oneOf('kind', ['pull']),
    domainUuid: fields.text('domain_uuid'),
    domainName: fields.text('domain_name'),
    uri: fields.text('uri'),
    checkpoint: fields.text('checkpoint'),
    baseCheckpoint: fields.optionalText('base_checkpoint'),
    socket: fields.text('socket'),
    scratch: fields.texts('scratch'),
    frozen: fields.flag('frozen'),
  }
}

export interface JournalExpectation extends PointExpectation {
  readonly encrypted: boolean
}
