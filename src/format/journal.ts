import type { PullJournal } from '../model/pull-journal.js'
import { decodeCheckedJson, encodeCheckedJson } from './checked-json.js'
import { Fields } from './fields.js'

/** Plain text also in an encrypted store: whoever cleans up after a dead run may not have the key. */
export function encodeJournal(journal: PullJournal): Uint8Array {
  return encodeCheckedJson({
    kind: journal.kind,
    domain_uuid: journal.domainUuid,
    domain_name: journal.domainName,
    uri: journal.uri,
    checkpoint: journal.checkpoint,
    base_checkpoint: journal.baseCheckpoint,
    socket: journal.socket,
    scratch: journal.scratch,
    frozen: journal.frozen,
  })
}

/** Throws E_DAMAGED. */
export function decodeJournal(bytes: Uint8Array): PullJournal {
  const what = 'the journal of a run'
  const fields = new Fields(decodeCheckedJson(bytes, what), what)
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
