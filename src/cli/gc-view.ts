import type { GcResult } from '../jobs/gc-job.js'
import { formatDuration } from '../model/duration.js'
import type { GcPlan } from '../model/gc-plan.js'
import { formatSize } from '../model/size.js'
import type { Envelope } from './base-command.js'
import { EXIT } from './exit-codes.js'
import { plural } from './output.js'

/** What recovery points alone hold, for a dry run: what would have to go for more to be freed. */
export interface Pin {
  readonly name: string
  readonly point: string
  readonly bytes: number
}

/** Pins shown to people; `--json` has them all. */
const PINS_SHOWN = 10

export function gcPlanLines(plan: GcPlan, pins: readonly Pin[]): string[] {
  const shown = pins.filter(({ bytes }) => bytes > 0).slice(0, PINS_SHOWN)
  return [
    `would free ${formatSize(plan.freedBytes)} of ${formatSize(plan.storeBytes)}: ` +
      `${plural(plan.dead.length, 'pack')} deleted, ${plan.rewritten.length} rewritten`,
    ...remarks(plan),
    ...(shown.length > 0 ? ['most of the rest is held by these points alone:'] : []),
    ...shown.map(({ name, bytes }) => `  ${name}  ${formatSize(bytes)}`),
    'Nothing was changed (--dry-run).',
  ]
}

export function gcPlanDocument(plan: GcPlan, pins: readonly Pin[]): Envelope {
  return {
    schema: 'virtvault/gc_plan/1',
    ok: true,
    status: 'success',
    exit: EXIT.ok,
    dry_run: true,
    ...planFields(plan),
    pinned_by: pins.map(({ point, name, bytes }) => ({ point, name, bytes })),
  }
}

export function gcSummary({ plan, swept, durationMs }: GcResult): string[] {
  const freed = swept.deletedBytes - swept.writtenBytes
  return [
    `freed ${formatSize(Math.max(0, freed))} of ${formatSize(plan.storeBytes)}: ` +
      `${plural(swept.deletedPacks, 'pack')} gone, ${formatSize(swept.writtenBytes)} rewritten, ${formatDuration(Math.round(durationMs))}`,
    ...remarks(plan),
    ...swept.damagedPacks.map(
      id => `! pack ${id} has damaged records that are needed: it stays; run verify --level data`,
    ),
  ]
}

export function gcDocument(result: GcResult): Envelope {
  const { plan, swept, durationMs } = result
  const exit = swept.damagedPacks.length > 0 ? EXIT.damage : EXIT.ok
  return {
    schema: 'virtvault/gc/1',
    ok: exit === EXIT.ok,
    status: exit === EXIT.ok ? 'success' : 'partial',
    exit,
    seconds: durationMs / 1000,
    ...planFields(plan),
    deleted_packs: swept.deletedPacks,
    deleted_bytes: swept.deletedBytes,
    written_bytes: swept.writtenBytes,
    damaged_packs: swept.damagedPacks,
  }
}

function remarks(plan: GcPlan): string[] {
  return [
    ...(plan.keptGarbageBytes > 0
      ? [`${formatSize(plan.keptGarbageBytes)} of garbage stays in packs that are mostly needed`]
      : []),
    ...plan.doubtful.map(pack => `! pack ${pack.id} was not finished or is damaged: it stays for now`),
  ]
}

function planFields(plan: GcPlan): object {
  return {
    store_bytes: plan.storeBytes,
    freeable_bytes: plan.freedBytes,
    dead_packs: plan.dead.length,
    rewritten_packs: plan.rewritten.length,
    doubtful_packs: plan.doubtful.map(pack => pack.id),
    kept_garbage_bytes: plan.keptGarbageBytes,
  }
}
