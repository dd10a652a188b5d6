import * as Args from '@oclif/core/args'

import { BaseCommand, type Envelope } from '../cli/base-command.js'
import { EXIT } from '../cli/exit-codes.js'
import { findPoint } from '../cli/points.js'
import { shortId } from '../model/point-ref.js'

export default class ReleaseCommand extends BaseCommand {
  static override description = 'Ends a hold. The point is then kept or expired by the retention rules like any other.'
  static override examples = [
    { command: '<%= config.bin %> release web01@pre-upgrade', description: 'A point found by its tag' },
    { command: '<%= config.bin %> release @3f9c2a1', description: 'A point found by its id' },
  ]
  static override args = {
    point: Args.string({ description: '[DOMAIN]@REF', required: true, ignoreStdin: true }),
  }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(ReleaseCommand)
    await using session = await this.session(flags)
    const { openStore } = await import('../cli/wire.js')
    await using store = await openStore(session)
    const { point, notes } = (await findPoint(store, args.point)).noted

    const wasHeld = notes.hold !== undefined
    if (wasHeld) await store.points.annotate(point, { ...notes, hold: undefined })
    session.print([`${point.domain.name}@${shortId(point.id)}  ${wasHeld ? 'released' : 'was not held'}`])
    return this.finish({
      schema: 'virtvault/release/1',
      ok: true,
      status: 'success',
      exit: EXIT.ok,
      point: point.id,
      was_held: wasHeld,
    })
  }
}
