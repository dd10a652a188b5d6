import * as Flags from '@oclif/core/flags'

import { BackupError } from '../base/errors.js'
import { BaseCommand, type Envelope } from '../cli/base-command.js'
import { STORED_DOMAINS, STORED_GROUPS } from '../cli/domain-flags.js'
import { selectStored } from '../cli/points.js'
import type { GlobalFlagValues } from '../cli/settings.js'
import type { TrialWishes } from '../cli/trial-run.js'
import { verifyDocument, verifyLines } from '../cli/verify-view.js'
import { parseDuration } from '../model/duration.js'

const LEVELS = ['quick', 'data', 'restore', 'boot'] as const

export default class VerifyCommand extends BaseCommand {
  static override description =
    'Finds out whether recovery points can be restored. quick walks every tree and looks for every pack; data also reads, ' +
    'decodes and hashes what is stored; restore takes the newest point of each domain (or [DOMAIN]@REF) the whole way of a ' +
    'restore but for the last write; boot starts it without network on a throw-away overlay and waits for its agent, a ' +
    'pattern on its serial console, or a screen that changes. Damage is told by point, disk and bytes, makes the exit code 7, and is remembered: ' +
    'the next backup of the domain reads those parts again from the live disk.'
  static override examples = [
    { command: '<%= config.bin %> verify', description: 'Is everything there?' },
    { command: '<%= config.bin %> verify --level data --sample 5%', description: 'Read 5 %, the longest unread first' },
    {
      command: '<%= config.bin %> verify web01 --level data --max-age 30d',
      description: 'Read what was not read for 30 days; may be broken off and begun again',
    },
    { command: '<%= config.bin %> verify web01 --level boot', description: 'Does it start? How long does that take?' },
  ]
  static override args = {
    selector: STORED_DOMAINS,
  }
  static override flags = {
    group: STORED_GROUPS,
    level: Flags.option({ summary: 'how deep to look', options: LEVELS, default: 'quick' })(),
    sample: Flags.string({ summary: 'read this share of the data, the longest unread first', helpValue: '5%' }),
    'max-age': Flags.string({ summary: 'leave out what was read within this time', helpValue: '30d' }),
    'boot-timeout': Flags.string({ summary: 'how long a guest may take to boot', helpValue: '5m', default: '5m' }),
    console: Flags.string({ summary: 'it has booted when its first serial port says this', helpValue: 'REGEX' }),
  }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(VerifyCommand)
    const { level } = flags
    const sample = flags.sample === undefined ? undefined : parseShare(flags.sample)
    const maxAge = flags['max-age'] === undefined ? undefined : parseDuration(flags['max-age'])
    if (level !== 'data' && (sample ?? maxAge) !== undefined) {
      throw new BackupError('E_USAGE', '--sample and --max-age are about reading data', { hints: ['add --level data'] })
    }
    if (level === 'restore' || level === 'boot') {
      const consolePattern = flags.console === undefined ? undefined : parsePattern(flags.console)
      const timeoutMs = parseDuration(flags['boot-timeout'])
      const chosen = { selectors: args.selector ?? [], groups: flags.group ?? [] }
      return await this.#tryOut({ level, ...chosen, timeoutMs, consolePattern }, flags)
    }
    await using session = await this.session(flags)
    const { makeVerifyJob, openWholeStore, storeGroups } = await import('../cli/wire.js')
    await using store = await openWholeStore(session)
    const asked = { selectors: args.selector ?? [], groups: flags.group ?? [] }
    const isAll = asked.selectors.length === 0 && asked.groups.length === 0
    const meant = isAll
      ? undefined
      : selectStored(await store.points.readable(), asked, await storeGroups(session, asked.groups))
    const job = await makeVerifyJob(session, store)
    const isMeant = ({ domain }: { readonly domain: { readonly uuid: string } }) => meant?.has(domain.uuid) !== false
    const result = await job.run({ level, isMeant, sample, maxAge }, session.signal)
    await session.endProgress()
    session.print(verifyLines(result, level))
    return this.finish(verifyDocument(result, level))
  }

  async #tryOut(wishes: TrialWishes, flags: GlobalFlagValues): Promise<Envelope> {
    await using session = await this.session(flags)
    const { openStore } = await import('../cli/wire.js')
    const { runTrials, trialDocument, trialLines } = await import('../cli/trial-run.js')
    await using store = await openStore(session)
    const outcomes = await runTrials(session, store, wishes)
    await session.endProgress()
    session.print(trialLines(outcomes))
    return this.finish(trialDocument(outcomes, wishes.level))
  }
}

function parsePattern(text: string): RegExp {
  try {
    return new RegExp(text)
  } catch (cause) {
    throw new BackupError('E_USAGE', `"${text}" is not a regular expression`, { cause })
  }
}

function parseShare(text: string): number {
  const [, digits] = /^(\d{1,3}(?:\.\d+)?)%$/.exec(text.trim()) ?? []
  const share = Number(digits) / 100
  if (!(share > 0 && share <= 1)) {
    throw new BackupError('E_USAGE', `"${text}" is not a share`, { hints: ['write a percentage: 5%'] })
  }
  return share
}
