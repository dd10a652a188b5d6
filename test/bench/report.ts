import { cpus, loadavg } from 'node:os'

import { GIB, MIB } from './data.js'
import type { CaseResult, Ratio, Row } from './suite.js'

export interface Report {
  readonly machine: string
  readonly date: string
  readonly size: number
  readonly rounds: number
  readonly load: readonly number[]
  readonly cases: readonly (Omit<CaseResult, 'ratios'> & { readonly ratios: readonly JudgedRatio[] })[]
}

export interface JudgedRatio extends Ratio {
  readonly value: number
  readonly isReached: boolean | undefined
}

export function makeReport(results: readonly CaseResult[], run: Pick<Report, 'date' | 'size' | 'rounds'>): Report {
  return {
    ...run,
    machine: `${cpus().length} x ${cpus()[0]?.model ?? 'unknown'}, Node ${process.version}`,
    load: loadavg().map(one => Number(one.toFixed(1))),
    cases: results.map(one => ({ ...one, ratios: one.ratios.flatMap(ratio => judge(ratio, one.rows)) })),
  }
}

function judge(ratio: Ratio, rows: readonly Row[]): JudgedRatio[] {
  const figure = (name: string) => {
    const row = rows.find(one => one.name === name)
    if (row === undefined) return undefined
    return ratio.by === 'wall' ? row.wall : row.user + row.system
  }
  const [of, against] = [figure(ratio.of), figure(ratio.against)]
  if (of === undefined || against === undefined) return []
  const value = ratio.difference === true ? of - against : of / against
  return [{ ...ratio, value, isReached: ratio.reach === undefined ? undefined : value <= ratio.reach }]
}

export function toMarkdown(report: Report): string {
  const { machine, date, size, rounds } = report
  const lines = [
    `${date}, ${machine}; disk of ${(size / GIB).toFixed(2)} GiB, ${rounds} rounds, medians; load is that of the last minute.`,
    '',
  ]
  for (const { title, rows, ratios } of report.cases) {
    const extras = [...new Set(rows.flatMap(row => Object.keys(row.figures)))]
    lines.push(
      `### ${title}`,
      '',
      table(
        ['', 'wall s', 'user s', 'system s', 'peak MiB', 'read MiB', 'written MiB', ...extras.map(toWords), 'load'],
        rows.map(row => [
          row.name,
          row.wall.toFixed(2),
          row.user.toFixed(2),
          row.system.toFixed(2),
          row.peakMib.toFixed(0),
          (row.readBytes / MIB).toFixed(0),
          (row.writtenBytes / MIB).toFixed(0),
          ...extras.map(name => showFigure(name, row.figures[name])),
          row.load.toFixed(1),
        ]),
      ),
      '',
    )
    if (ratios.length === 0) continue
    lines.push(
      table(
        ['', 'is', 'wanted', ''],
        ratios.map(({ what, value, reach, isReached, difference }) => [
          what,
          difference === true ? `${value.toFixed(2)} s` : value.toFixed(2),
          reach === undefined ? '' : `at most ${Number(reach.toFixed(3))}`,
          isReached === undefined ? '' : isReached ? 'reached' : 'not reached',
        ]),
      ),
      '',
    )
  }
  return lines.join('\n')
}

function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]) => `| ${cells.join(' | ')} |`
  return [line(head), `|${head.map((_, at) => (at === 0 ? '---' : '--:')).join('|')}|`, ...rows.map(line)].join('\n')
}

function showFigure(name: string, value: number | undefined): string {
  if (value === undefined) return ''
  return name.endsWith('Bytes') ? (value / MIB).toFixed(1) : String(value)
}

function toWords(name: string): string {
  const words = name.replace(/([A-Z])/g, ' $1').toLowerCase()
  return words.replace(/ bytes$/, ' MiB')
}
