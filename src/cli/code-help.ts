import { readFileSync } from 'node:fs'

import { BackupError } from '../base/errors.js'

/** The entry of docs/errors.md for `code`. Throws E_NOT_FOUND. */
export function renderCodeHelp(code: string): string[] {
  const entry = readErrorPages().get(code)
  if (entry === undefined) throw new BackupError('E_NOT_FOUND', `there is no code ${code}`)
  return [code, '', ...entry]
}

/** docs/errors.md by code: the lines under `## E_CODE`. */
export function readErrorPages(): ReadonlyMap<string, readonly string[]> {
  const text = readFileSync(new URL('../../../docs/errors.md', import.meta.url), 'utf8')
  const pages = new Map<string, readonly string[]>()
  for (const section of text.split(/^## /m).slice(1)) {
    const [title = '', ...lines] = section.trim().split('\n')
    if (/^[EW]_[A-Z_]+$/.test(title)) pages.set(title, lines.join('\n').trim().split('\n'))
  }
  return pages
}
