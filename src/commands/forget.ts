import * as Args from '@oclif/core/args'
import * as Flags from '@oclif/core/flags'

import { BackupError } from '../base/errors.js'
import { BaseCommand, type Envelope } from '../cli/base-command.js'
import { EXIT } from '../cli/exit-codes.js'
import { formatLocalTime, plural, renderRows } from '../cli/output.js'
import { findPoint } from '../cli/points.js'
import type { NotedPoint } from '../cli/point-view.js'
import { shortId } from '../model/point-ref.js'

export default class ForgetCommand extends BaseCommand {
  static override description =
    'Deletes recovery points for ever. Every other point stays complete. A held point is refused; forgetting the newest ' +
    'one of a domain costs one full read. Space is freed by gc.'
  static override examples = [
    { command: '<%= config.bin %> forget @3f9c2a1 -n', description: 'Say what would be deleted' },
    { command: '<%= config.bin %> forget web01@~3 web01@~4 --yes', description: 'Two points, without asking' },
  ]
  static override args = {
    point: Args.string({ description: '[DOMAIN]@REF', required: true, multiple: true, ignoreStdin: true }),
  }
  static override flags = {
    'dry-run': Flags.boolean({ char: 'n', summary: 'say what would be deleted' }),
  }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(ForgetCommand)
    await using session = await this.session(flags)
    const { openStore } = await import('../cli/wire.js')
    await using store = await openStore(session)
    // All are found before any is deleted: ~1 must not change its meaning on the way.
    const found = new Map<string, NotedPoint>()
    for (const text of args.point) {
      const { noted } = await findPoint(store, text)
      refuseHeld(noted, session.clock.now())
      found.set(noted.point.id, noted)
    }
    const points = [...found.values()].map(({ point }) => point)
    const rows = points.map(({ id, time, domain }) => [domain.name, `@${shortId(id)}`, formatLocalTime(time)])
    const isDryRun = flags['dry-run']
    if (!isDryRun) {
      await session.confirm(`${plural(points.length, 'recovery point')} will be deleted for ever: ${rows.join('; ')}.`)
      for (const point of points) {
        session.signal.throwIfAborted()
        await store.points.remove(point)
      }
    }
    session.print([
      ...renderRows(rows),
      isDryRun ? 'Would forget these.  Nothing was changed (--dry-run).' : `Forgot ${plural(points.length, 'point')}.`,
    ])
    return this.finish({
      schema: 'virtvault/forget/1',
      ok: true,
      status: 'success',
      exit: EXIT.ok,
      dry_run: isDryRun,
      points: points.map(({ id, domain }) => ({ id, domain: domain.name, uuid: domain.uuid })),
    })
  }
}

function refuseHeld({ point, notes }: NotedPoint, now: number): void {
  const { hold } = notes
  if (hold === undefined || (hold.until !== undefined && hold.until <= now)) return
  const name = `${point.domain.name}@${shortId(point.id)}`
  throw new BackupError('E_REFUSED', `${name} is held: nothing was deleted`, {
    why: hold.reason,
    hints: [`end the hold first: virtvault release ${name}`],
  })
}
