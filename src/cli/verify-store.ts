import { BackupError } from '../base/errors.js'
import type { StoreTask } from '../daemon/task.js'
import type { JobResult } from '../daemon/task-runner.js'
import { MINUTE_MS, parseDuration } from '../model/duration.js'
import { shortId } from '../model/point-ref.js'
import type { RecoveryPoint } from '../model/recovery-point.js'
import type { Store } from '../store/store.js'
import type { RunContext } from './session.js'
import { makeVerifyJob } from './wire.js'

const BOOT_TIMEOUT_MS = 5 * MINUTE_MS

/**
 * Verifies a store as the configuration's `verify` says, or, for a task with a
 * level of its own, as its `verify.boot`. Rejects with E_DAMAGED where it finds
 * damage, or a guest that does not boot.
 */
export async function verifyStore(context: RunContext, store: Store, task: StoreTask): Promise<JobResult> {
  const { verify } = (await context.config()).config
  const level = task.level ?? verify?.level ?? 'quick'
  if (level === 'restore' || level === 'boot') return await tryOut(context, store, level)
  const job = await makeVerifyJob(context, store)
  const sample = verify?.sample === undefined || level === 'quick' ? undefined : parseFloat(verify.sample) / 100
  const maxAge = verify?.max_age === undefined || level === 'quick' ? undefined : parseDuration(verify.max_age)
  const result = await job.run({ level, isMeant: () => true, sample, maxAge }, context.signal)
  const { hurt, unreadable } = result
  if (hurt.length > 0 || unreadable.length > 0) {
    throw damaged(`${hurt.length + unreadable.length} of ${result.points} points are damaged`, [
      ...hurt.map(({ point }) => nameOf(point)),
      ...unreadable.map(({ file }) => file),
    ])
  }
  return { status: 'success', warnings: [], figures: { read_bytes: result.readBytes, points: result.points } }
}

/** The newest point of each domain; of the groups of `verify.boot` where it names some. */
async function tryOut(context: RunContext, store: Store, level: 'restore' | 'boot'): Promise<JobResult> {
  const { verify } = (await context.config()).config
  // A store may be new: nothing to try is no failure.
  if ((await store.points.list()).length === 0) return { status: 'skipped', warnings: [], figures: {} }
  const { runTrials } = await import('./trial-run.js')
  const { groups, timeout } = verify?.boot ?? {}
  const timeoutMs = timeout === undefined ? BOOT_TIMEOUT_MS : parseDuration(timeout)
  const wishes = { level, selectors: [], groups: level === 'boot' ? (groups ?? []) : [], timeoutMs }
  const outcomes = await runTrials(context, store, { ...wishes, consolePattern: undefined })
  for (const { point, ok, detail } of outcomes) {
    const message = `${ok ? 'ok' : 'FAILED'}: ${nameOf(point)}  ${detail}`
    context.progress.report({ kind: 'log', level: 'info', message })
  }
  const bad = outcomes.filter(({ ok }) => !ok)
  if (bad.length > 0) {
    const what = level === 'boot' ? 'did not boot' : 'cannot be restored'
    throw damaged(
      `${bad.length} of ${outcomes.length} points ${what}`,
      bad.map(({ point, detail }) => `${nameOf(point)}: ${detail}`),
    )
  }
  const slowest = Math.max(0, ...outcomes.map(({ seconds }) => seconds))
  const seconds = level === 'boot' ? { boot_seconds: slowest } : {}
  return { status: 'success', warnings: [], figures: { points: outcomes.length, ...seconds } }
}

function damaged(message: string, which: readonly string[]): BackupError {
  return new BackupError('E_DAMAGED', message, { why: which.join(', '), hints: ['see where: virtvault verify'] })
}

function nameOf({ domain, id }: RecoveryPoint): string {
  return `${domain.name}@${shortId(id)}`
}
