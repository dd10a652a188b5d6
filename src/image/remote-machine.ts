import { BackupError, type ErrorCode } from '../base/errors.js'
import type { WritableExport } from './export-image.js'

export interface RemoteAnswer {
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

/** The machine of a hypervisor that is reached through ssh, as images there need it; `cli/remote-restore-wire.ts` makes it. */
export interface RemoteMachine {
  readonly host: string
  /**
   * Runs a script in `sh` there, with `args` as its `$1`, `$2`, …, for as long as
   * it takes. Rejects with E_UNREACHABLE or what aborted `signal`; over there it
   * may then run on. A connection that was lost is made anew.
   */
  run(script: string, args: readonly string[], signal?: AbortSignal): Promise<RemoteAnswer>
  /** Notes a name before it is used: what has it when we end, even by SIGKILL, is removed. Rejects as run(). */
  own(path: string): Promise<void>
  /** As run(), with bytes on standard input, of which the script has to take as many as there are, and no more. */
  feed(script: string, args: readonly string[], bytes: Uint8Array): Promise<RemoteAnswer>
  /** Serves an image there for writing. Rejects with E_NBD, E_DOMAIN_BUSY, E_TOOL_MISSING, E_UNREACHABLE. */
  serve(image: { readonly path: string; readonly format: string }, signal: AbortSignal): Promise<RemoteExport>
}

/** Disposing ends the server, and never rejects. */
export interface RemoteExport extends AsyncDisposable {
  /** Rejects with E_UNREACHABLE where the connection was lost. */
  readonly target: WritableExport
  /** Ends the server in order: the image is closed when it resolves. Rejects with E_IO, E_UNREACHABLE. */
  close(): Promise<void>
}

/** Exit codes of the scripts in this folder. */
export const TAKEN = 44
export const NO_REGULAR_FILE = 45
const NOT_INSTALLED = 127

/** Defines `refuse_taken FINAL FORCE`. */
export const REFUSE_TAKEN = `
refuse_taken() {
  if [ -e "$1" ] || [ -L "$1" ]; then
    [ "$2" = force ] || exit ${TAKEN}
    [ -f "$1" ] && [ ! -L "$1" ] || exit ${NO_REGULAR_FILE}
  fi
}`

/** Of a script that failed: E_EXISTS, E_REFUSED, E_NO_SPACE, E_TOOL_MISSING, E_IO; names machine and file. */
export function failureOf(host: string, path: string, answer: RemoteAnswer): BackupError {
  const why = answer.stderr.trim()
  if (answer.code === TAKEN) {
    return new BackupError('E_EXISTS', `${path} on ${host} exists`, {
      hints: ['Restore to another directory with --to, or replace it with --force.'],
    })
  }
  if (answer.code === NO_REGULAR_FILE) {
    return new BackupError('E_REFUSED', `${path} on ${host} is not a regular file`, {
      hints: ['Remove it yourself, or restore to another directory.'],
    })
  }
  if (answer.code === NOT_INSTALLED || /: not found$/m.test(why)) {
    return new BackupError('E_TOOL_MISSING', `${host} lacks a program that restores need`, { why })
  }
  const code: ErrorCode = /No space left|quota exceeded/i.test(why) ? 'E_NO_SPACE' : 'E_IO'
  const hints = code === 'E_NO_SPACE' ? ['Free space there, or restore to another directory with --to.'] : []
  return new BackupError(code, `${host}: ${path} cannot be written`, { why: why || `exit code ${answer.code}`, hints })
}
