import * as Flags from '@oclif/core/flags'

import { BackupError } from '../base/errors.js'
import { BaseCommand, type Envelope } from '../cli/base-command.js'
import { STORED_DOMAINS, STORED_GROUPS } from '../cli/domain-flags.js'
import { plural } from '../cli/output.js'
import { selectStored } from '../cli/points.js'
import { pruneDocument, prunePlanLines, pruneSummary, simulationDocument, simulationLines } from '../cli/prune-view.js'
import { DAY_MS, parseDuration } from '../model/duration.js'
import { evenTimes, type KeepCount, type RetentionPolicy, simulateRetention } from '../model/retention.js'

const keep = (what: string) =>
  Flags.string({ summary: `keep ${what}; * keeps all`, helpValue: 'N', helpGroup: 'RULES' })

export default class PruneCommand extends BaseCommand {
  static override description =
    'Deletes recovery points that no rule keeps. Rules come from the configuration, or, as soon as one --keep flag is ' +
    'given, from the flags alone. The first point of each period stands for it; the newest point, held ones and those ' +
    'from the future stay. Space is freed by gc.'
  static override examples = [
    { command: '<%= config.bin %> prune -n', description: 'Say what would go, with a reason for each point' },
    {
      command: '<%= config.bin %> prune web01 --keep-daily 7 --keep-weekly 4 --yes',
      description: 'One domain, by these rules',
    },
    { command: '<%= config.bin %> prune --simulate 400d', description: 'What a year of daily backups would leave' },
  ]
  static override args = {
    selector: STORED_DOMAINS,
  }
  static override flags = {
    group: STORED_GROUPS,
    'keep-last': keep('the newest N'),
    'keep-hourly': keep('the first of each of N hours'),
    'keep-daily': keep('the first of each of N days'),
    'keep-weekly': keep('the first of each of N weeks'),
    'keep-monthly': keep('the first of each of N months'),
    'keep-yearly': keep('the first of each of N years'),
    'keep-within': Flags.string({
      summary: 'keep all within this time before the newest',
      helpValue: '30d',
      helpGroup: 'RULES',
    }),
    'keep-tag': Flags.string({
      summary: 'keep points with this tag (repeatable)',
      helpValue: 'TAG',
      helpGroup: 'RULES',
      multiple: true,
      multipleNonGreedy: true,
    }),
    simulate: Flags.string({ summary: 'show what would be left after so long, and change nothing', helpValue: '400d' }),
    every: Flags.string({ summary: 'time between the backups of a simulation [1d]', helpValue: '1d' }),
    'ignore-clock': Flags.boolean({ summary: 'go on although a clock looks wrong' }),
    'dry-run': Flags.boolean({ char: 'n', summary: 'say what would be deleted, and why' }),
  }

  override async run(): Promise<Envelope> {
    const { args, flags } = await this.parse(PruneCommand)
    const rules = policyOfFlags(flags)
    const simulated = flags.simulate === undefined ? undefined : parseDuration(flags.simulate)
    await using session = await this.session(flags)
    const { freeableBytes, openWholeStore, prune, retentionRules } = await import('../cli/wire.js')
    await using store = await openWholeStore(session)
    const { policyOf, groups, timeZone } = await retentionRules(session, rules)
    prune.refuseUnreadable(await store.points.unreadable())
    const asked = { selectors: args.selector ?? [], groups: flags.group ?? [] }
    const meant = selectStored(await store.points.list(), asked, groups)
    const found = await prune.readPruned(store.points, domain => meant.has(domain.uuid))
    const now = session.clock.now()
    const options = { now, timeZone, force: flags['ignore-clock'] }
    const plan = prune.planPrune(found, policyOf, options)

    if (simulated !== undefined) {
      const everyMs = flags.every === undefined ? DAY_MS : parseDuration(flags.every)
      const days = Math.round(simulated / DAY_MS)
      const domains = plan.map(({ domain, decisions }) => ({
        name: domain.name,
        simulation: simulateRetention(evenTimes(now, days, everyMs), policyOf(domain).policy, {
          timeZone: options.timeZone,
          points: decisions.map(({ point }) => point),
        }),
      }))
      session.print(simulationLines(domains, { days, everyMs }))
      return this.finish(simulationDocument(domains))
    }

    session.print(prunePlanLines(plan))
    const expired = prune.expiredOf(plan)
    const freeable = await freeableBytes(
      store,
      expired.map(({ id }) => id),
      session.signal,
    )
    const isDryRun = flags['dry-run']
    let deleted
    if (!isDryRun) {
      if (expired.length > 0) {
        await session.confirm(`${plural(expired.length, 'recovery point')} will be deleted for ever.`)
      }
      deleted = await prune.executePrune(store.points, plan, now, session.signal)
    }
    const outcome = { plan, deleted, freeableBytes: freeable }
    session.print([pruneSummary(outcome)])
    return this.finish(pruneDocument(outcome))
  }
}

type RuleFlags = Readonly<Partial<Record<`keep-${string}`, string | string[] | undefined>>>

/** undefined where no rule was given: then the configuration has them. */
function policyOfFlags(flags: RuleFlags): RetentionPolicy | undefined {
  const count = (name: `keep-${string}`) => {
    const text = flags[name]
    return typeof text === 'string' ? parseKeep(name, text) : undefined
  }
  const [within, tags] = [flags['keep-within'], flags['keep-tag']]
  const policy = {
    last: count('keep-last'),
    hourly: count('keep-hourly'),
    daily: count('keep-daily'),
    weekly: count('keep-weekly'),
    monthly: count('keep-monthly'),
    yearly: count('keep-yearly'),
    within: typeof within === 'string' ? parseDuration(within) : undefined,
    tags: Array.isArray(tags) ? tags : undefined,
  }
  return Object.values(policy).some(value => value !== undefined) ? policy : undefined
}

function parseKeep(flag: string, text: string): KeepCount {
  if (text === '*') return text
  if (!/^\d{1,9}$/.test(text)) {
    throw new BackupError('E_USAGE', `--${flag} takes a number or *, not "${text}"`)
  }
  return Number(text)
}
