import * as Args from '@oclif/core/args'

import { BaseCommand, type Envelope } from '../cli/base-command.js'
import { EXIT } from '../cli/exit-codes.js'
import { plural } from '../cli/output.js'
import { printable } from '../cli/printable.js'

const MARKS = { ok: 'ok  ', note: 'note', mend: 'MEND' } as const

export default class DoctorCommand extends BaseCommand {
  static override description =
    'Looks at what a backup depends on and says what would happen and why: tools, libvirt and its rights, the store, and ' +
    'of a domain its disks, dirty bitmaps, guest agent and scratch room. Each thing that is not as it should be comes ' +
    'with the command that mends it. Changes nothing. Ends with 3 where something must be mended (MEND); what only ' +
    'could be better (note) counts as good.'
  static override examples = [
    { command: '<%= config.bin %> doctor -t /srv/backup', description: 'The host and the store' },
    { command: '<%= config.bin %> doctor web01', description: 'What the next pull of this domain would do' },
  ]
  static override args = {
    domain: Args.string({ description: 'name or UUID of a domain', ignoreStdin: true }),
  }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(DoctorCommand)
    await using session = await this.session(flags)
    const { makeDoctorJob } = await import('../cli/wire.js')
    const job = await makeDoctorJob(session)
    const findings = await job.run(args.domain, session.signal)
    const mends = findings.filter(({ state }) => state === 'mend').length
    session.print([
      ...findings.flatMap(({ area, state, message, hint }) => [
        `${MARKS[state]}  ${area.padEnd(7)}  ${printable(message)}`,
        ...(hint === undefined ? [] : [`      ${' '.repeat(9)}Do: ${printable(hint)}`]),
      ]),
      mends === 0 ? 'All good.' : `${plural(mends, 'thing')} to mend.`,
    ])
    return this.finish({
      schema: 'virtvault/doctor/1',
      ok: mends === 0,
      status: mends === 0 ? 'success' : 'partial',
      exit: mends === 0 ? EXIT.ok : EXIT.partial,
      domain: args.domain,
      findings,
    })
  }
}
