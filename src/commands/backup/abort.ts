import * as Flags from '@oclif/core/flags'

import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { LIVING_DOMAINS } from '../../cli/domain-flags.js'
import { EXIT } from '../../cli/exit-codes.js'
import { printable } from '../../cli/printable.js'
import type { AbortOutcome } from '../../jobs/abort-job.js'
import { selectDomains } from '../../model/selector.js'

const SAID: Readonly<Record<AbortOutcome['status'], string>> = {
  clean: 'nothing was left',
  cleaned: 'cleaned up',
  busy: 'a backup is under way: left alone',
  left: 'not clean',
}

export default class AbortCommand extends BaseCommand {
  static override description =
    'Cleans up after backups of this store that died: thaws the file systems, ends their libvirt job, deletes the ' +
    'checkpoint that belongs to no recovery point, removes socket and scratch files. A backup that is under way is ' +
    'left alone, and so is a job of another tool. The next pull does the same by itself. Without a selector: all ' +
    'domains.'
  static override examples = [
    { command: '<%= config.bin %> backup abort', description: 'After a crash, for all domains' },
    {
      command: '<%= config.bin %> backup abort web01 --force',
      description: 'Also a job of ours that this store knows nothing of, such as one of a store that is gone',
    },
  ]
  static override args = {
    domain: LIVING_DOMAINS,
  }
  static override flags = {
    force: Flags.boolean({ summary: 'end a job of virtvault that this store does not know, too' }),
  }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(AbortCommand)
    await using session = await this.session(flags)
    const { abortBackup, connectMachine, openStore } = await import('../../cli/wire.js')
    await using store = await openStore(session)
    await using machine = await connectMachine(session)
    const found = (await machine.hypervisor.listDomains()).map(({ uuid, name }) => ({ uuid, name }))
    const selectors = args.domain ?? []
    const { domains } = selectDomains(found, { selectors, all: selectors.length === 0 }, new Map())
    if (flags.force)
      await session.confirm(`A backup of another store that is under way on ${domains.length} domains would fail.`)

    const outcomes: AbortOutcome[] = []
    for (const domain of domains) {
      const outcome = await abortBackup({ store, machine }, domain, { force: flags.force })
      outcomes.push(outcome)
      if (outcome.status !== 'clean' || selectors.length > 0) {
        session.print([`${printable(domain.name)}: ${SAID[outcome.status]}`])
      }
      for (const { code, message } of outcome.warnings) {
        if (code === 'W_CLEANUP') session.complain(`${code} ${message}`)
      }
    }
    const isClean = outcomes.every(({ status }) => status === 'clean' || status === 'cleaned')
    return this.finish({
      schema: 'virtvault/backup_abort/1',
      ok: isClean,
      status: isClean ? 'success' : 'partial',
      exit: isClean ? EXIT.ok : EXIT.partial,
      domains: outcomes.map(({ domain: { name, uuid }, status, warnings }) => ({ name, uuid, status, warnings })),
    })
  }
}
