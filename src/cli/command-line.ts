import { suggest } from '../model/suggest.js'
import { COMMAND_TABLE, type CommandEntry, namesOf } from './command-table.js'
import { GLOBAL_FLAGS_WITH_VALUE } from './global-options.js'

/** What the command line asks for, before its flags are parsed. */
export type Request =
  | { readonly kind: 'version' }
  | { readonly kind: 'help'; readonly subject: HelpSubject }
  | { readonly kind: 'run'; readonly entry: CommandEntry; readonly argv: readonly string[] }
  /** `virtvault` or `virtvault backup` alone: nothing was asked for, so it cannot have succeeded. */
  | { readonly kind: 'incomplete'; readonly subject: HelpSubject }
  | { readonly kind: 'unknown'; readonly typed: string; readonly suggestion: string | undefined }

export type HelpSubject =
  | { readonly kind: 'root' }
  | { readonly kind: 'topic'; readonly name: string }
  | { readonly kind: 'command'; readonly entry: CommandEntry }
  /** An error or warning code. */
  | { readonly kind: 'code'; readonly code: string }

/** Global flags may stand before the command: `virtvault -t nas list` is `virtvault list -t nas`. */
export function readCommandLine(argv: readonly string[], table: readonly CommandEntry[] = COMMAND_TABLE): Request {
  const { before, rest } = splitLeadingFlags(argv)
  if (before.some(word => word === '--version' || word === '-V')) return { kind: 'version' }
  if (rest[0] === 'help') return readHelp(rest.slice(1), table)

  const found = findCommand(rest, table)
  const wantsHelp = [...before, ...untilDashes(rest)].some(word => word === '--help' || word === '-h')
  if (found !== undefined) {
    if (wantsHelp) return { kind: 'help', subject: { kind: 'command', entry: found.entry } }
    return { kind: 'run', entry: found.entry, argv: [...before, ...rest.slice(found.words)] }
  }

  const [first] = rest
  if (first === undefined || first === '--') {
    return { kind: wantsHelp ? 'help' : 'incomplete', subject: { kind: 'root' } }
  }
  const second = rest[1]
  if (isTopic(first, table) && (second === undefined || second.startsWith('-'))) {
    return { kind: wantsHelp ? 'help' : 'incomplete', subject: { kind: 'topic', name: first } }
  }
  return unknown(rest, table)
}

function readHelp(words: readonly string[], table: readonly CommandEntry[]): Request {
  const subject = words.filter(word => !word.startsWith('-'))
  const [first] = subject
  if (first === undefined) return { kind: 'help', subject: { kind: 'root' } }
  if (/^[EW]_[A-Z_]+$/.test(first)) return { kind: 'help', subject: { kind: 'code', code: first } }
  const found = findCommand(subject, table)
  if (found !== undefined) return { kind: 'help', subject: { kind: 'command', entry: found.entry } }
  if (subject.length === 1 && isTopic(first, table)) return { kind: 'help', subject: { kind: 'topic', name: first } }
  return unknown(subject, table)
}

/** The command with the most words that `words` start with. */
function findCommand(
  words: readonly string[],
  table: readonly CommandEntry[],
): { readonly entry: CommandEntry; readonly words: number } | undefined {
  let best: { readonly entry: CommandEntry; readonly words: number } | undefined
  for (const entry of table) {
    for (const name of namesOf(entry)) {
      const parts = name.split(':')
      if (parts.every((part, index) => words[index] === part) && parts.length > (best?.words ?? 0)) {
        best = { entry, words: parts.length }
      }
    }
  }
  return best
}

function isTopic(word: string, table: readonly CommandEntry[]): boolean {
  return table.some(entry => entry.id.startsWith(`${word}:`))
}

function unknown(words: readonly string[], table: readonly CommandEntry[]): Request {
  const plain = words.slice(0, 2).filter(word => !word.startsWith('-'))
  const names = table.flatMap(namesOf).map(name => name.replaceAll(':', ' '))
  const topics = names.flatMap(name => (name.includes(' ') ? [name.split(' ')[0] ?? name] : []))
  const [first = '', second] = plain
  const suggestion = suggest(plain.join(' '), names) ?? suggest(first, [...names, ...topics])
  const typed = second !== undefined && isTopic(first, table) ? `${first} ${second}` : first
  return { kind: 'unknown', typed, suggestion }
}

function splitLeadingFlags(argv: readonly string[]): { readonly before: string[]; readonly rest: string[] } {
  let position = 0
  while (position < argv.length) {
    const word = argv[position] ?? ''
    if (!word.startsWith('-') || word === '--') break
    position += GLOBAL_FLAGS_WITH_VALUE.has(word) ? 2 : 1
  }
  return { before: argv.slice(0, position), rest: argv.slice(position) }
}

function untilDashes(words: readonly string[]): readonly string[] {
  const end = words.indexOf('--')
  return end === -1 ? words : words.slice(0, end)
}
