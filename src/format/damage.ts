import { BackupError } from '../base/errors.js'

/** The error of every decoder: E_DAMAGED, with what was expected. */
export function damaged(what: string, detail: string, cause?: unknown): BackupError {
  return new BackupError('E_DAMAGED', `${what} is damaged: ${detail}`, { cause })
}

/** Throws E_DAMAGED unless `condition`. */
export function expectIntact(condition: boolean, what: string, detail: string): asserts condition {
  if (!condition) throw damaged(what, detail)
}
