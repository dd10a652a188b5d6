import { COMMAND_TABLE, type CommandEntry, TOPICS } from './command-table.js'

const GROUPS = ['DAILY', 'KEEPING', 'SET UP'] as const

/** `virtvault --help`, without loading a single command. */
export function renderRootHelp(table: readonly CommandEntry[] = COMMAND_TABLE): string[] {
  const width = Math.max(...table.map(entry => typed(entry).length)) + 2
  const lines = [
    'Incremental, deduplicating backups of libvirt virtual machines.',
    '',
    'USAGE',
    '  virtvault COMMAND [ARGUMENTS] [FLAGS]',
  ]
  for (const group of GROUPS) {
    const entries = table.filter(entry => entry.group === group)
    if (entries.length === 0) continue
    lines.push('', group, ...entries.map(entry => `  ${typed(entry).padEnd(width)}${entry.summary}`))
  }
  return [
    ...lines,
    '',
    'POINTS are written [DOMAIN]@REF, REF = latest, ~N, an id, a date or a tag:  web01@latest  @3f9c2a1',
    '',
    'MORE',
    '  virtvault COMMAND --help   flags and examples of a command',
    '  virtvault help E_AGENT     what an error code means and what to do',
    '  virtvault --version',
  ]
}

/** `virtvault backup --help`. */
export function renderTopicHelp(name: string, table: readonly CommandEntry[] = COMMAND_TABLE): string[] {
  const entries = table.filter(entry => entry.id.startsWith(`${name}:`))
  const width = Math.max(...entries.map(entry => typed(entry).length)) + 2
  return [
    `${TOPICS[name] ?? name}.`,
    '',
    'USAGE',
    `  virtvault ${name} COMMAND`,
    '',
    'COMMANDS',
    ...entries.map(entry => `  ${typed(entry).padEnd(width)}${entry.summary}`),
  ]
}

function typed(entry: CommandEntry): string {
  return entry.id.replaceAll(':', ' ')
}
