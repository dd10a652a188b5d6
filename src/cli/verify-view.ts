import type { HurtPoint, VerifyResult } from '../jobs/verify-job.js'
import { formatDuration } from '../model/duration.js'
import { shortId } from '../model/point-ref.js'
import { formatSize } from '../model/size.js'
import type { Envelope } from './base-command.js'
import { EXIT } from './exit-codes.js'
import { plural } from './output.js'
import { printable } from './printable.js'

/** Ranges of one disk shown to people; `--json` has them all. */
const RANGES_SHOWN = 8

export function verifyLines(result: VerifyResult, level: 'quick' | 'data'): string[] {
  const read = level === 'quick' ? '' : `, ${formatSize(result.readBytes)} read of ${formatSize(result.neededBytes)}`
  const time = formatDuration(Math.round(result.durationMs))
  const isSound = exitOf(result) === EXIT.ok
  return [
    ...result.unreadable.map(({ file, error }) => `! ${printable(file)} cannot be read: ${printable(error.message)}`),
    ...result.damagedPacks.map(id => `! pack ${id} has lost its header or footer, or cannot be read at all`),
    ...result.hurt.flatMap(hurtLines),
    `${isSound ? 'ok' : 'DAMAGED'}: ${plural(result.points, 'point')}, level ${level}${read}, ${time}`,
    ...(isSound
      ? []
      : ['The damage is remembered: the next backup of each domain reads again what its disks still have.']),
  ]
}

export function verifyDocument(result: VerifyResult, level: 'quick' | 'data'): Envelope {
  const exit = exitOf(result)
  return {
    schema: 'virtvault/verify/1',
    ok: exit === EXIT.ok,
    status: exit === EXIT.ok ? 'success' : 'failed',
    exit,
    level,
    seconds: result.durationMs / 1000,
    points: result.points,
    read_packs: result.readPacks,
    read_bytes: result.readBytes,
    needed_bytes: result.neededBytes,
    complete: result.isComplete,
    lost_records: result.lostIds,
    unreadable: result.unreadable.map(({ file, error }) => ({ file, message: error.message })),
    damaged_packs: result.damagedPacks,
    damaged: result.hurt.map(({ point, disks, files }) => ({
      point: point.id,
      domain: point.domain.name,
      uuid: point.domain.uuid,
      disks: disks.map(({ disk, ranges }) => ({ target: disk, lost: ranges })),
      lost_files: files,
    })),
  }
}

function exitOf({ hurt, unreadable, lostIds, damagedPacks }: VerifyResult): number {
  const isSound = hurt.length === 0 && unreadable.length === 0 && lostIds === 0 && damagedPacks.length === 0
  return isSound ? EXIT.ok : EXIT.damage
}

function hurtLines({ point, disks, files }: HurtPoint): string[] {
  const name = `${printable(point.domain.name)}@${shortId(point.id)}`
  return [
    ...disks.map(({ disk, ranges }) => {
      const shown = ranges.slice(0, RANGES_SHOWN).map(({ offset, length }) => `[${offset}, ${offset + length})`)
      const more = ranges.length > RANGES_SHOWN ? `, and ${ranges.length - RANGES_SHOWN} more` : ''
      const bytes = ranges.reduce((sum, { length }) => sum + length, 0)
      return `! ${name} ${printable(disk)}: ${formatSize(bytes)} lost, bytes ${shown.join(', ')}${more}`
    }),
    ...files.map(file => `! ${name}: ${printable(file)} is lost`),
  ]
}
