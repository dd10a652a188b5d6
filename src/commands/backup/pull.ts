import * as Flags from '@oclif/core/flags'

import { BaseCommand, type Envelope } from '../../cli/base-command.js'
import { LIVING_DOMAINS } from '../../cli/domain-flags.js'
import { PRIORITY_FLAGS } from '../../cli/priority.js'
import { forecastDocument, forecastLines } from '../../cli/pull-forecast-view.js'
import { pullDocument, pullSummary } from '../../cli/pull-view.js'
import { parseSize } from '../../model/size.js'

export default class PullCommand extends BaseCommand {
  static override description =
    'Makes one recovery point per domain: reads what changed since the newest point of this store where libvirt still ' +
    'knows, everything otherwise, and stores only what the store does not have. Every point can be restored alone. ' +
    'The guest keeps running; its file systems are frozen for the moment of the checkpoint where its agent can. ' +
    'Without a selector: the groups of the configuration that have autostart. A point that lacks a disk which nobody ' +
    'excluded counts as partial (exit 3).'
  static override examples = [
    { command: '<%= config.bin %> backup pull web01 -t /srv/backup', description: 'One domain into one store' },
    { command: "<%= config.bin %> backup pull 'r:^web' '!web-test' db01", description: 'Several at once' },
    {
      command: '<%= config.bin %> backup pull --all --quiesce=required --json',
      description: 'All domains; those that cannot be frozen fail',
    },
    { command: '<%= config.bin %> backup pull web01 -n', description: 'Only say what would be read, and why' },
  ]
  static override args = {
    domain: LIVING_DOMAINS,
  }
  static override flags = {
    group: Flags.string({
      char: 'g',
      summary: 'domains of a group of the configuration (repeatable)',
      helpValue: 'GROUP',
      multiple: true,
      multipleNonGreedy: true,
    }),
    all: Flags.boolean({ summary: 'all domains of the hypervisor' }),
    mode: Flags.option({
      summary: 'full reads everything, incremental refuses to',
      options: ['auto', 'full', 'incremental'] as const,
      default: 'auto',
    })(),
    disk: Flags.string({
      summary: 'only this disk (repeatable)',
      helpValue: 'vda',
      multiple: true,
      multipleNonGreedy: true,
      exclusive: ['exclude-disk'],
    }),
    'exclude-disk': Flags.string({
      summary: 'all disks but this (repeatable)',
      helpValue: 'vdb',
      multiple: true,
      multipleNonGreedy: true,
    }),
    depth: Flags.integer({
      summary: 'images of each backing chain that belong to the point: N topmost, -N all but the N lowest, 0 all',
      helpValue: 'N',
    }),
    quiesce: Flags.boolean({
      summary: 'freeze file systems where the agent can (default); --quiesce=required fails where not',
      allowNo: true,
    }),
    'quiesce-required': Flags.boolean({ hidden: true }),
    'freeze-mount': Flags.string({
      summary: 'freeze only this mount point (repeatable)',
      helpValue: '/var',
      multiple: true,
      multipleNonGreedy: true,
    }),
    threads: Flags.integer({ summary: 'NBD connections per disk', min: 1, max: 16, helpValue: 'N' }),
    parallel: Flags.integer({ summary: 'domains at once', min: 1, max: 64, helpValue: 'N' }),
    'min-change': Flags.string({ summary: 'make no point where less has changed', helpValue: '16MiB' }),
    bwlimit: Flags.string({
      summary: 'read at most this much in a second, all domains together',
      helpValue: '200MiB',
    }),
    ...PRIORITY_FLAGS,
    'start-paused': Flags.boolean({
      summary: 'start domains that are off, paused, instead of reading their images; for encrypted and network disks',
    }),
    'scratch-dir': Flags.string({ summary: 'where QEMU keeps what the guest overwrites meanwhile', helpValue: 'DIR' }),
    'scratch-device': Flags.string({
      summary: 'for one disk a block device instead; it is overwritten (repeatable)',
      helpValue: 'vda=/dev/vg/s',
      multiple: true,
      multipleNonGreedy: true,
    }),
    'scratch-limit': Flags.string({ summary: 'give up when scratch takes more', helpValue: '20GiB' }),
    tls: Flags.boolean({
      summary: 'of another machine: read disks over TLS, not through ssh',
      exclusive: ['insecure'],
    }),
    insecure: Flags.boolean({
      summary: 'of another machine: read disks over TCP in clear text; the network is trusted',
    }),
    'nbd-bind': Flags.string({ summary: 'address of that machine that QEMU listens at', helpValue: 'IP' }),
    tag: Flags.string({ summary: 'tag the point (repeatable)', multiple: true, multipleNonGreedy: true }),
    comment: Flags.string({ summary: 'a line kept with the point' }),
    'dry-run': Flags.boolean({ char: 'n', summary: 'say what would be read of each disk, and why; begin nothing' }),
  }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(PullCommand, this.argv.map(spellOutQuiesce))
    const limit = flags['scratch-limit']
    const wishes = {
      selectors: args.domain ?? [],
      groups: flags.group ?? [],
      all: flags.all,
      mode: flags.mode,
      settings: {
        disks: flags.disk,
        excludeDisks: flags['exclude-disk'],
        depth: flags.depth,
        quiesce: flags['quiesce-required'] ? ('required' as const) : flags.quiesce,
        freezeMounts: flags['freeze-mount'],
        connections: flags.threads,
        bwlimit: flags.bwlimit === undefined ? undefined : parseSize(flags.bwlimit),
        minChange: flags['min-change'] === undefined ? undefined : parseSize(flags['min-change']),
        scratchDir: flags['scratch-dir'],
        scratchDevices: flags['scratch-device'],
        tags: flags.tag,
        // Absent is not false: the configuration may ask for it.
        startPaused: flags['start-paused'] ? true : undefined,
      },
      scratchLimitBytes: limit === undefined ? undefined : parseSize(limit),
      comment: flags.comment,
      remote: {
        nbd: flags.tls ? ('tls' as const) : flags.insecure ? ('tcp' as const) : undefined,
        insecure: flags.insecure ? true : undefined,
        bind: flags['nbd-bind'],
      },
    }
    await using session = await this.session(flags)
    const { runForecast, runPull } = await import('../../cli/pull-run.js')
    if (flags['dry-run']) {
      const outcomes = await runForecast(session, wishes)
      await session.endProgress()
      session.print(forecastLines(outcomes))
      return this.finish(forecastDocument(outcomes))
    }
    const run = await runPull(session, wishes, flags)
    await session.endProgress()
    const shown = { ...run, interrupted: this.interruptedExit }
    session.print(pullSummary(shown))
    return this.finish(pullDocument(shown))
  }
}

/** oclif has no flags with an optional value. */
function spellOutQuiesce(word: string): string {
  return word === '--quiesce=required' ? '--quiesce-required' : word
}
