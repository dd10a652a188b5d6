import * as Flags from '@oclif/core/flags'

import { BaseCommand, type Envelope } from '../cli/base-command.js'
import { gcDocument, gcPlanDocument, gcPlanLines, gcSummary } from '../cli/gc-view.js'
import { parseDuration } from '../model/duration.js'

export default class GcCommand extends BaseCommand {
  static override description =
    'Deletes what no recovery point needs any more, and rewrites packs that are mostly garbage. Backups and restores go ' +
    'on meanwhile; gc waits for those that began before it. It can be ended at any moment and goes on where it was the ' +
    'next time. It refuses to delete anything while a point or a tree cannot be read.'
  static override examples = [
    { command: '<%= config.bin %> gc -n', description: 'Say what would be freed, and which points hold the rest' },
    { command: '<%= config.bin %> gc --wait 6h', description: 'Wait up to six hours for backups under way' },
  ]
  static override flags = {
    'dry-run': Flags.boolean({ char: 'n', summary: 'say what would be freed, and which points hold the rest' }),
    wait: Flags.string({ summary: 'how long to wait for backups and restores under way [1h]', helpValue: '6h' }),
    'min-live': Flags.integer({
      summary: 'rewrite packs of which less than this percentage is needed; 0 rewrites none [60]',
      helpValue: '60',
      min: 0,
      max: 100,
    }),
  }

  override async run(): Promise<Envelope> {
    const { flags } = await this.parse(GcCommand)
    const minLive = flags['min-live']
    const request = {
      threshold: minLive === undefined ? undefined : minLive / 100,
      drainMs: flags.wait === undefined ? undefined : parseDuration(flags.wait),
    }
    await using session = await this.session(flags)
    const { makeGcJob, openWholeStore, pinsOf } = await import('../cli/wire.js')
    await using store = await openWholeStore(session)
    const job = await makeGcJob(session, store)
    if (flags['dry-run']) {
      const plan = await job.plan(request, session.signal)
      const pins = await pinsOf(store, session.signal)
      await session.endProgress()
      session.print(gcPlanLines(plan, pins))
      return this.finish(gcPlanDocument(plan, pins))
    }
    const result = await job.run(request, session.signal)
    await session.endProgress()
    session.print(gcSummary(result))
    return this.finish(gcDocument(result))
  }
}
