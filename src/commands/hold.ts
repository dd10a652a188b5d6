import * as Args from '@oclif/core/args'
import * as Flags from '@oclif/core/flags'

import { BackupError } from '../base/errors.js'
import { BaseCommand, type Envelope } from '../cli/base-command.js'
import { EXIT } from '../cli/exit-codes.js'
import { formatLocalTime } from '../cli/output.js'
import { findPoint } from '../cli/points.js'
import { parseDuration } from '../model/duration.js'
import { shortId } from '../model/point-ref.js'

export default class HoldCommand extends BaseCommand {
  static override description =
    'Keeps a recovery point from prune and forget, until it is released or a date has passed.'
  static override examples = [
    { command: '<%= config.bin %> hold web01@latest --reason audit', description: 'Until it is released' },
    { command: '<%= config.bin %> hold @3f9c2a1 --until 2027-01-01', description: 'Until a date, or for 90d' },
  ]
  static override args = {
    point: Args.string({ description: '[DOMAIN]@REF', required: true, ignoreStdin: true }),
  }
  static override flags = {
    until: Flags.string({ summary: 'a date, or a duration from now', helpValue: '2027-01-01|90d' }),
    reason: Flags.string({ summary: 'shown with the point' }),
  }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(HoldCommand)
    await using session = await this.session(flags)
    const now = session.clock.now()
    const until = flags.until === undefined ? undefined : readUntil(flags.until, now)
    const { openStore } = await import('../cli/wire.js')
    await using store = await openStore(session)
    const { point, notes } = (await findPoint(store, args.point)).noted

    await store.points.annotate(point, { ...notes, hold: { until, reason: flags.reason } })
    const end = until === undefined ? 'until it is released' : `until ${formatLocalTime(until)}`
    session.print([`${point.domain.name}@${shortId(point.id)}  held ${end}`])
    return this.finish({
      schema: 'virtvault/hold/1',
      ok: true,
      status: 'success',
      exit: EXIT.ok,
      point: point.id,
      until: until === undefined ? null : new Date(until).toISOString(),
      reason: flags.reason ?? null,
    })
  }
}

function readUntil(text: string, now: number): number {
  const isDate = /^\d{4}-\d{2}-\d{2}/.test(text)
  // A date alone is midnight here, not in Greenwich.
  const until = isDate ? new Date(text.length === 10 ? `${text}T00:00` : text).getTime() : now + parseDuration(text)
  if (!Number.isFinite(until)) throw new BackupError('E_USAGE', `"${text}" is not a date`)
  if (until <= now) throw new BackupError('E_USAGE', `${text} has passed already`)
  return until
}
