import { printable } from './printable.js'

/** One column of a table. */
export interface Column {
  readonly title: string
  readonly align?: 'left' | 'right' | undefined
}

/**
 * Rows under their titles, two blanks between columns, no lines drawn, no
 * blanks at the end: easy for people, `cut` and `awk`. Cells are made printable
 * here. A table without rows is empty.
 */
export function renderTable(columns: readonly Column[], rows: readonly (readonly string[])[]): string[] {
  if (rows.length === 0) return []
  const right = columns.flatMap(({ align }, index) => (align === 'right' ? [index] : []))
  return renderRows([columns.map(({ title }) => title), ...rows], right)
}

/** As renderTable(), without titles; columns in `right` are aligned to the right. */
export function renderRows(rows: readonly (readonly string[])[], right: readonly number[] = []): string[] {
  const cells = rows.map(row => row.map(printable))
  const widths = (cells[0] ?? []).map((_, index) => Math.max(...cells.map(row => width(row[index] ?? ''))))
  return cells.map(row =>
    widths
      .map((columnWidth, index) => {
        const cell = row[index] ?? ''
        const padding = ' '.repeat(columnWidth - width(cell))
        return right.includes(index) ? padding + cell : cell + padding
      })
      .join('  ')
      .trimEnd(),
  )
}

const GRAPHEMES = new Intl.Segmenter()

function width(text: string): number {
  return [...GRAPHEMES.segment(text)].length
}

/** Local time for people: `2026-11-20 02:01`. */
export function formatLocalTime(milliseconds: number): string {
  const date = new Date(milliseconds)
  return `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())} ${pad(date.getHours())}:${pad(date.getMinutes())}`
}

/** Local time with its zone for log lines: `2026-11-20T02:00:01+01:00`. */
export function formatLogTime(milliseconds: number): string {
  const date = new Date(milliseconds)
  const offset = -date.getTimezoneOffset()
  const zone = `${offset < 0 ? '-' : '+'}${pad(Math.floor(Math.abs(offset) / 60))}:${pad(Math.abs(offset) % 60)}`
  return `${formatLocalTime(milliseconds).replace(' ', 'T')}:${pad(date.getSeconds())}${zone}`
}

/** `1 point`, `3 points`. */
export function plural(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? '' : 's'}`
}

function pad(value: number): string {
  return String(value).padStart(2, '0')
}

/** Seconds for JSON documents, to the millisecond. */
export function inSeconds(milliseconds: number): number {
  return Math.round(milliseconds) / 1000
}
