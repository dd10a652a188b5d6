import type { CommandClass, CommandEntry } from './command-table.js'
import { EXIT_MEANINGS } from './exit-codes.js'

/**
 * The page docs/commands/<verb>.md of a command, from the same source as its
 * `--help`. `npm run docs` writes them; a test compares them.
 */
export function renderCommandPage(entry: CommandEntry, command: CommandClass): string {
  const typed = `virtvault ${entry.id.replaceAll(':', ' ')}`
  const own = Object.entries(command.flags ?? {}).filter(([, flag]) => flag.hidden !== true)
  const global = Object.entries(command.baseFlags)
  const args = Object.entries(command.args ?? {})
  const synopsis = [typed, ...args.map(([name, arg]) => argumentOf(name, arg)), ...own.map(flagSynopsis)].join(' ')
  const examples = Array.isArray(command.examples) ? command.examples.filter(isExample) : []
  return [
    `# ${typed}`,
    '',
    `${entry.summary}.`,
    '',
    '```',
    ...wrap(synopsis, 100, '    '),
    '```',
    '',
    ...wrap(command.description ?? '', 120, ''),
    '',
    ...section(
      'Arguments',
      args.map(([name, arg]) => `- \`${name.toUpperCase()}\`: ${arg.description ?? ''}`),
    ),
    ...section('Options', own.map(flagLine)),
    ...section('Options of all commands', global.map(flagLine)),
    ...section(
      'Also known as',
      (entry.aliases ?? []).map(alias => `\`virtvault ${alias.replaceAll(':', ' ')}\``),
    ),
    ...section('Exit status', [
      '| code | meaning |',
      '|---|---|',
      ...EXIT_MEANINGS.map(([code, text]) => `| ${code} | ${text} |`),
    ]),
    '## Examples',
    '',
    ...examples.flatMap(({ command: line, description }) => [
      `${description}:`,
      '',
      '```',
      line.replace('<%= config.bin %>', 'virtvault'),
      '```',
      '',
    ]),
  ]
    .join('\n')
    .trimEnd()
    .concat('\n')
}

type Flag = CommandClass['flags'][string]
type Argument = CommandClass['args'][string]

function section(title: string, lines: readonly string[]): string[] {
  return lines.length === 0 ? [] : [`## ${title}`, '', ...lines, '']
}

function argumentOf(name: string, arg: Argument): string {
  const word = `${name.toUpperCase()}${arg.multiple === true ? '...' : ''}`
  return arg.required === true ? word : `[${word}]`
}

function flagSynopsis(named: [string, Flag]): string {
  return named[1].required === true ? flagWords(named) : `[${flagWords(named)}]`
}

function flagLine(named: [string, Flag]): string {
  const [, flag] = named
  const letter = flag.char === undefined ? '' : `\`-${flag.char}\`, `
  const preset = flag.type === 'option' && typeof flag.default === 'string' ? ` (default ${flag.default})` : ''
  return `- ${letter}\`${flagWords(named)}\`: ${flag.summary ?? flag.description ?? ''}${preset}`
}

function flagWords([name, flag]: [string, Flag]): string {
  if (flag.type === 'boolean') return flag.allowNo ? `--[no-]${name}` : `--${name}`
  return `--${name} ${flag.options?.join('|') ?? [flag.helpValue ?? 'VALUE'].flat().join('|')}`
}

function isExample(example: unknown): example is { command: string; description: string } {
  return typeof example === 'object' && example !== null && 'command' in example && 'description' in example
}

/** At blanks; `indent` before every line but the first. */
function wrap(text: string, width: number, indent: string): string[] {
  const lines: string[] = []
  let line = ''
  for (const word of text.split(' ')) {
    if (line !== '' && line.length + 1 + word.length > width) {
      lines.push(line)
      line = indent + word
    } else line = line === '' ? word : `${line} ${word}`
  }
  return [...lines, line]
}
