import { type ChildProcess, spawn } from 'node:child_process'
import { isAbsolute } from 'node:path'

import { BackupError, messageOf, type Warning } from '../base/errors.js'
import type { RawConfig } from '../config/schema.js'
import { formatDuration, MINUTE_MS, parseDuration } from '../model/duration.js'
import type { RunOutcome, RunStatus, Verb } from './task.js'

/**
 * Commands of the configuration around what runs, as borgmatic has them:
 *
 *     before: domain   after: domain   error: domain     (or everything, group, point)
 */

export type HookScope = 'everything' | 'group' | 'domain' | 'point'
export type HookMoment = 'before' | 'after' | 'error'
type RawHook = NonNullable<RawConfig['commands']>[number]

/** What a command is told, in its environment. */
export interface HookContext {
  readonly verb: Verb
  readonly target: string
  readonly domain?: { readonly uuid: string; readonly name: string } | undefined
  readonly group?: string | undefined
  /** How it went, after it. */
  readonly outcome?: Pick<RunOutcome, 'status' | 'error' | 'point' | 'figures'> | undefined
  /** As `backup pull` would exit. */
  readonly exit?: number | undefined
}

export interface HookPorts {
  /** In the guest of a domain; its exit code and what it printed. Rejects with E_AGENT, E_TIMEOUT. */
  runInGuest(uuid: string, command: GuestCommand, signal: AbortSignal): Promise<HookResult>
  log(line: string): void
}

export interface GuestCommand {
  readonly argv: readonly string[]
  readonly env: Readonly<Record<string, string>>
  readonly timeoutMs: number
}

export interface HookResult {
  /** undefined where a signal ended it. */
  readonly exit: number | undefined
  readonly output: string
}

/** What hooks before something decided. */
export type HookVerdict =
  | { readonly kind: 'go'; readonly warnings: readonly Warning[] }
  /** Not to be run, and that is fine. */
  | { readonly kind: 'cancel'; readonly why: string; readonly warnings: readonly Warning[] }
  | { readonly kind: 'fail'; readonly error: BackupError; readonly warnings: readonly Warning[] }

const DEFAULT_TIMEOUT_MS = 10 * MINUTE_MS
const MAX_OUTPUT_BYTES = 16 * 1024
/** Nothing of our own environment reaches a command: it may hold secrets. */
const PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'

/**
 * Runs the hooks before `scope`. One that fails makes the run fail, or cancels
 * it, or is a warning, as its `on_error` says. Never rejects.
 */
export async function runHooksBefore(
  hooks: readonly RawHook[],
  about: { readonly scope: HookScope; readonly context: HookContext },
  ports: HookPorts,
  signal: AbortSignal,
): Promise<HookVerdict> {
  const warnings: Warning[] = []
  for (const hook of matching(hooks, 'before', about)) {
    const failure = await runHook(hook, { moment: 'before', ...about }, ports, signal)
    if (failure === undefined) continue
    const why = `the hook before ${about.scope} failed: ${failure}`
    switch (hook.on_error ?? 'fail') {
      case 'ignore':
        warnings.push({ code: 'W_HOOK', message: why })
        break
      case 'cancel':
        return { kind: 'cancel', why, warnings }
      case 'fail':
        return { kind: 'fail', error: new BackupError('E_HOOK', why), warnings }
    }
  }
  return { kind: 'go', warnings }
}

/** Runs the hooks after `scope`, and those for an error. What fails here is a warning: it undoes no backup. Never rejects. */
export async function runHooksAfter(
  hooks: readonly RawHook[],
  about: { readonly scope: HookScope; readonly context: HookContext },
  ports: HookPorts,
  signal: AbortSignal,
): Promise<readonly Warning[]> {
  const warnings: Warning[] = []
  const moments = about.context.outcome?.status === 'failed' ? (['error', 'after'] as const) : (['after'] as const)
  for (const moment of moments) {
    for (const hook of matching(hooks, moment, about)) {
      const failure = await runHook(hook, { moment, ...about }, ports, signal)
      if (failure === undefined) continue
      warnings.push({ code: 'W_HOOK', message: `the hook ${momentWord(moment)} ${about.scope} failed: ${failure}` })
    }
  }
  return warnings
}

function matching(
  hooks: readonly RawHook[],
  moment: HookMoment,
  { scope, context }: { readonly scope: HookScope; readonly context: HookContext },
): readonly RawHook[] {
  const status: RunStatus | undefined = context.outcome?.status
  return hooks.filter(
    hook =>
      hook[moment] === scope &&
      (hook.when === undefined || hook.when.includes(context.verb)) &&
      (hook.groups === undefined || (context.group !== undefined && hook.groups.includes(context.group))) &&
      (moment === 'before' || hook.states === undefined || hook.states.some(state => state === status)),
  )
}

interface HookRun {
  readonly moment: HookMoment
  readonly scope: HookScope
  readonly context: HookContext
}

/** Why it failed; undefined where it did not. */
async function runHook(
  hook: RawHook,
  run: HookRun,
  ports: HookPorts,
  signal: AbortSignal,
): Promise<string | undefined> {
  const timeoutMs = hook.timeout === undefined ? DEFAULT_TIMEOUT_MS : parseDuration(hook.timeout)
  const env = hookEnvironment(run)
  const commands = typeof hook.run === 'string' ? [hook.run] : hook.run
  for (const command of commands) {
    const name = typeof command === 'string' ? command : command.join(' ')
    try {
      const argv = argvOf(command, hook.inside === true)
      const { uuid } = run.context.domain ?? {}
      const { exit, output } =
        hook.inside === true && uuid !== undefined
          ? await ports.runInGuest(uuid, { argv, env, timeoutMs }, signal)
          : await runOnHost(argv, { env, timeoutMs }, signal)
      for (const line of output.split('\n')) if (line.trim() !== '') ports.log(`hook: ${line.trimEnd()}`)
      if (exit !== 0) return `"${name}" ended with ${exit === undefined ? 'a signal' : String(exit)}`
    } catch (error) {
      return `"${name}": ${messageOf(error)}`
    }
  }
  return undefined
}

/** A text is for the shell; a list is a program and its arguments, which no shell sees. Throws E_CONFIG. */
function argvOf(command: string | readonly string[], isInside: boolean): readonly string[] {
  if (typeof command === 'string') return ['/bin/sh', '-c', command]
  const [program = ''] = command
  if (!isInside && !isAbsolute(program)) {
    throw new BackupError('E_CONFIG', `${program} is not an absolute path`, {
      hints: ['write the whole path of the program'],
    })
  }
  return command
}

function hookEnvironment({ moment, scope, context }: HookRun): Readonly<Record<string, string>> {
  const { verb, target, domain, group, outcome, exit } = context
  const summary = { verb, target, domain: domain?.name, group, ...outcome }
  const values: Readonly<Record<string, string | undefined>> = {
    PATH,
    LANG: 'C.UTF-8',
    VIRTVAULT_EVENT: `${moment}.${scope}`,
    VIRTVAULT_VERB: verb,
    VIRTVAULT_TARGET: target,
    VIRTVAULT_DOMAIN: domain?.name,
    VIRTVAULT_UUID: domain?.uuid,
    VIRTVAULT_GROUP: group,
    VIRTVAULT_STATUS: outcome?.status,
    VIRTVAULT_POINT: outcome?.point,
    VIRTVAULT_ERROR_CODE: outcome?.error?.code,
    VIRTVAULT_EXIT: exit === undefined ? undefined : String(exit),
    VIRTVAULT_SUMMARY_JSON: outcome === undefined ? undefined : JSON.stringify(summary),
  }
  return Object.fromEntries(Object.entries(values).filter((entry): entry is [string, string] => entry[1] !== undefined))
}

/** With everything that it started, it is killed after `timeoutMs` or when `signal` aborts. Rejects with E_TIMEOUT, E_INTERRUPTED, E_TOOL_MISSING. */
export async function runOnHost(
  argv: readonly string[],
  {
    env,
    timeoutMs,
    input,
  }: {
    readonly env: Readonly<Record<string, string>>
    readonly timeoutMs: number
    readonly input?: string | undefined
  },
  signal: AbortSignal,
): Promise<HookResult> {
  const [program = '', ...args] = argv
  const ended = new AbortController()
  const late = AbortSignal.timeout(timeoutMs)
  return await new Promise<HookResult>((resolve, reject) => {
    const child = spawn(program, args, { env: { ...env }, cwd: '/', detached: true, stdio: ['pipe', 'pipe', 'pipe'] })
    const output: Buffer[] = []
    let bytes = 0
    const take = (part: Buffer) => {
      if (bytes < MAX_OUTPUT_BYTES) output.push(part.subarray(0, MAX_OUTPUT_BYTES - bytes))
      bytes += part.length
    }
    const give = (error: BackupError) => {
      killGroup(child)
      reject(error)
    }
    const options = { once: true, signal: ended.signal } as const
    late.addEventListener(
      'abort',
      () => give(new BackupError('E_TIMEOUT', `it ran longer than ${formatDuration(timeoutMs)}`)),
      options,
    )
    signal.addEventListener('abort', () => give(new BackupError('E_INTERRUPTED', 'interrupted')), options)
    if (signal.aborted) give(new BackupError('E_INTERRUPTED', 'interrupted'))
    child.stdin.on('error', () => undefined)
    child.stdin.end(input ?? '')
    child.stdout.on('data', take)
    child.stderr.on('data', take)
    child.once('error', error => reject(new BackupError('E_TOOL_MISSING', messageOf(error), { cause: error })))
    // Not 'close': something that it left running in the background may keep its output open.
    child.once('exit', code => {
      setImmediate(() => {
        child.stdout.destroy()
        child.stderr.destroy()
        resolve({ exit: code ?? undefined, output: Buffer.concat(output).toString('utf8') })
      })
    })
  }).finally(() => ended.abort())
}

function killGroup(child: ChildProcess): void {
  try {
    if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL')
  } catch {
    // It has just ended.
  }
}

function momentWord(moment: HookMoment): string {
  return moment === 'error' ? 'for an error of' : moment
}
