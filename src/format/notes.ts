import type { PointNotes } from '../model/recovery-point.js'
import { ENVELOPE_MAGIC, decodeEnvelope, encodeEnvelope } from './envelope.js'
import { expectIntact } from './damage.js'
import { Fields } from './fields.js'
import { fromHex, toHex } from '../base/hex.js'
import type { PointExpectation, PointSeal } from './point.js'

/** `pointId` (hex) binds the notes to their point, so that a file under another name is noticed. */
export function encodeNotes(pointId: string, notes: PointNotes, seal: PointSeal): Uint8Array {
  const map = {
    point_id: fromHex(pointId),
    tags: notes.tags,
    hold: notes.hold === undefined ? undefined : { until_ms: notes.hold.until, reason: notes.hold.reason },
    verified:
      notes.verified === undefined
        ? undefined
        : {
            level: notes.verified.level,
            time_ms: notes.verified.time,
            ok: notes.verified.ok,
            detail: notes.verified.detail,
          },
  }
  return encodeEnvelope(map, { ...seal, magic: ENVELOPE_MAGIC.notes })
}

/** Throws E_DAMAGED, E_STORE_FORMAT. */
export function decodeNotes(pointId: string, bytes: Uint8Array, expected: PointExpectation): PointNotes {
  const what = 'a notes file'
  const fields = new Fields(decodeEnvelope(bytes, { ...expected, magic: ENVELOPE_MAGIC.notes }), what)
  expectIntact(toHex(fields.bytes('point_id', 16)) === pointId, what, 'it belongs to another recovery point')
  return {
    tags: fields.texts('tags'),
    hold: fields.optionalMap('hold', hold => ({
      until: hold.optionalCount('until_ms'),
      reason: hold.optionalText('reason'),
    })),
    verified: fields.optionalMap('verified', verified => ({
      level: verified.text('level'),
      time: verified.count('time_ms'),
      ok: verified.flag('ok'),
      detail: verified.optionalText('detail'),
    })),
  }
}
