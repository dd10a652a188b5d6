import t from 'tap'

import { readCommandLine } from '../../../src/cli/command-line.js'
import type { CommandEntry } from '../../../src/cli/command-table.js'
import { COMMAND_TABLE } from '../../../src/cli/command-table.js'

const never = () => Promise.reject(new Error('not loaded here'))
const TABLE: readonly CommandEntry[] = [
  { id: 'list', group: 'DAILY', summary: 's', aliases: ['ls'], load: never },
  { id: 'backup:pull', group: 'DAILY', summary: 's', hiddenAliases: ['backup:create', 'bak'], load: never },
  { id: 'backup:abort', group: 'DAILY', summary: 's', load: never },
]
const read = (...argv: string[]) => readCommandLine(argv, TABLE)

t.test('a command is found by its words, its alias and its foreign names', async t => {
  t.match(read('backup', 'pull', 'db01', '--json'), {
    kind: 'run',
    entry: { id: 'backup:pull' },
    argv: ['db01', '--json'],
  })
  t.match(read('ls'), { kind: 'run', entry: { id: 'list' } })
  t.match(read('bak', 'db01'), { kind: 'run', entry: { id: 'backup:pull' }, argv: ['db01'] })
  t.match(read('backup', 'create'), { kind: 'run', entry: { id: 'backup:pull' }, argv: [] })
})

t.test('a domain that is called like a command stays an argument', async t => {
  t.match(read('list', 'list'), { kind: 'run', entry: { id: 'list' }, argv: ['list'] })
  t.match(read('backup', 'pull', 'help'), { kind: 'run', argv: ['help'] })
})

t.test('global flags may stand before the command', async t => {
  t.match(read('-t', 'nas', '--json', 'list', 'db01'), { kind: 'run', argv: ['-t', 'nas', '--json', 'db01'] })
  t.match(read('--target=nas', 'list'), { kind: 'run', argv: ['--target=nas'] })
})

t.test('help is found wherever it is asked for', async t => {
  t.match(read('--help'), { kind: 'help', subject: { kind: 'root' } })
  t.match(read('help'), { kind: 'help', subject: { kind: 'root' } })
  t.match(read('list', '-h'), { kind: 'help', subject: { kind: 'command', entry: { id: 'list' } } })
  t.match(read('help', 'backup', 'pull'), { kind: 'help', subject: { kind: 'command', entry: { id: 'backup:pull' } } })
  t.match(read('backup', '--help'), { kind: 'help', subject: { kind: 'topic', name: 'backup' } })
  t.match(read('help', 'E_AGENT'), { kind: 'help', subject: { kind: 'code', code: 'E_AGENT' } })
  t.match(read('list', '--', '--help'), { kind: 'run', argv: ['--', '--help'] }, 'not after --')
})

t.test('versions are asked for by --version and -V', async t => {
  t.match(read('--version'), { kind: 'version' })
  t.match(read('-V'), { kind: 'version' })
})

t.test('half a command is not a success', async t => {
  t.match(read(), { kind: 'incomplete', subject: { kind: 'root' } })
  t.match(read('backup'), { kind: 'incomplete', subject: { kind: 'topic', name: 'backup' } })
  t.match(read('--json'), { kind: 'incomplete' })
})

t.test('a misspelt command suggests the nearest', async t => {
  t.match(read('bakcup', 'pull'), { kind: 'unknown', typed: 'bakcup', suggestion: 'backup pull' })
  t.match(read('backup', 'pul'), { kind: 'unknown', typed: 'backup pul', suggestion: 'backup pull' })
  t.match(read('lst', '--json'), { kind: 'unknown', suggestion: 'list' })
  t.match(read('frobnicate'), { kind: 'unknown', suggestion: undefined })
})

t.test('no two commands answer to one name, and summaries fit a line', async t => {
  const names = COMMAND_TABLE.flatMap(entry => [entry.id, ...(entry.aliases ?? []), ...(entry.hiddenAliases ?? [])])
  t.equal(new Set(names).size, names.length)
  for (const entry of COMMAND_TABLE) t.ok(entry.summary.length <= 70, entry.id)
})

t.test('every command has a description and two examples, and takes no argument from stdin', async t => {
  for (const entry of COMMAND_TABLE) {
    const { default: command } = await entry.load()
    t.ok(command.description !== undefined && command.description !== '', `${entry.id} is described`)
    t.ok(Array.isArray(command.examples) && command.examples.length >= 2, `${entry.id} has two examples`)
    for (const [name, arg] of Object.entries(command.args)) t.ok(arg.ignoreStdin, `${entry.id} ${name}`)
  }
})
