import { BackupError, errorCodeOf, type ErrorCode, messageOf } from '../base/errors.js'
import { EXIT, exitOfError } from './exit-codes.js'
import { printable, printableLines } from './printable.js'

/** An error as users and programs see it. */
export interface ErrorReport {
  readonly code: ErrorCode
  readonly message: string
  readonly why: string | undefined
  readonly hints: readonly string[]
  /** Command that explains the code. */
  readonly ref: string
  readonly exit: number
}

/** What was on the command line, for errors of usage. */
export interface UsageContext {
  /** As typed, e.g. `backup pull`. */
  readonly command: string
}

/** Makes a report of anything that was thrown. Errors of oclif's parser become E_USAGE. */
export function reportError(error: unknown, usage?: UsageContext): ErrorReport {
  if (isUsageError(error)) {
    const help = usage === undefined ? 'virtvault --help' : `virtvault ${usage.command} --help`
    return make('E_USAGE', usageMessage(error.message), undefined, [`see ${help}`], EXIT.usage)
  }
  const code = errorCodeOf(error)
  const message = messageOf(error)
  if (error instanceof BackupError) {
    return make(code, message, error.why ?? causeOf(error), error.hints, exitOfError(code))
  }
  if (code === 'E_INTERNAL') {
    const hints = ['run it again with -vv and report what it prints']
    return make(code, message, 'this is a fault of virtvault, not of what you did', hints, exitOfError(code))
  }
  return make(code, message, causeOf(error), [], exitOfError(code))
}

/** `Error: ... [E_X]`, `Why:`, `Do:`, `More:`, one string per line, printable. */
export function renderError(report: ErrorReport): string[] {
  const [first = '', ...rest] = printableLines(report.message)
  const lines = [`Error: ${first}  [${report.code}]`, ...rest.map(line => `  ${line}`)]
  if (report.why !== undefined) lines.push(...labelled('Why:', report.why))
  report.hints.forEach((hint, index) => lines.push(...labelled(index === 0 ? 'Do:' : '', hint)))
  lines.push(`  More: ${report.ref}`)
  return lines
}

/** The document that `--json` prints instead of a result. */
export function errorDocument(report: ErrorReport): object {
  const { code, message, why, hints, ref, exit } = report
  return { schema: 'virtvault/error/1', ok: false, error: { code, message, why: why ?? null, hints, ref, exit } }
}

/** Of one of several things, within a document that says more. */
export function errorFields({ code, message, why, hints, exit }: ErrorReport): object {
  return { code, message, why: why ?? null, hints, exit }
}

/** Hides user names and passwords in URLs; nothing secret may reach a terminal or a log. */
export function redactUrls(text: string): string {
  return text.replace(/([a-z][a-z0-9+.-]*:\/\/)([^/\s@]+)@/gi, (_, scheme: string, user: string) => {
    const [name = ''] = user.split(':')
    return user.includes(':') ? `${scheme}${name}:***@` : `${scheme}${user}@`
  })
}

function make(
  code: ErrorCode,
  message: string,
  why: string | undefined,
  hints: readonly string[],
  exit: number,
): ErrorReport {
  return {
    code,
    message: redactUrls(message),
    why: why === undefined ? undefined : redactUrls(why),
    hints: hints.map(redactUrls),
    ref: `virtvault help ${code}`,
    exit,
  }
}

function labelled(label: string, text: string): string[] {
  return text.split('\n').map((line, index) => `  ${(index === 0 ? label : '').padEnd(5)} ${printable(line)}`)
}

function causeOf(error: unknown): string | undefined {
  const cause = error instanceof Error ? error.cause : undefined
  if (!(cause instanceof Error) || cause.message === '') return undefined
  return error instanceof Error && error.message.includes(cause.message) ? undefined : cause.message
}

/** What oclif's parser throws carries `oclif: { exit }`, and no code of ours. */
function isUsageError(error: unknown): error is Error {
  return error instanceof Error && 'oclif' in error && !(error instanceof BackupError)
}

const ESCAPES = /\u001b\[[0-9;]*m/g

/** oclif says `Nonexistent flag: --x\nSee more help with --help`; the hint says that better. */
function usageMessage(message: string): string {
  return message
    .replace(ESCAPES, '')
    .replace(/\n?See more help with --help/, '')
    .replace(/^Parsing (--\S+) \n\t/, '$1: ')
    .replace(/^Nonexistent flag(s?):/, 'unknown flag$1:')
    .replace(/^The following errors? occurred:\n\s*/, '')
    .replace(/Missing required flag (\S+)/g, 'the flag --$1 is missing')
    .trim()
}
