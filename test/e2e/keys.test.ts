import { spawn } from 'node:child_process'
import { readFileSync, readdirSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import t from 'tap'

import { toHex } from '../../src/base/hex.js'
import { decodeExportedKey } from '../../src/format/exported-key.js'
import { Store } from '../../src/store/store.js'
import { requires } from '../harness/requires.js'
import { CHUNK, given, pull } from '../store/harness.js'

const MAIN = fileURLToPath(new URL('../../src/cli/main.cjs', import.meta.url))
const geometry = { size: 4 * CHUNK, chunkSize: CHUNK }

// Each run of the program derives keys for a third of a second.
t.setTimeout(300_000)

interface Ended {
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

type Environment = Readonly<Record<string, string | undefined>>

/** Runs the program with only these secrets in its environment; `input` comes on stdin. */
function virtvault(args: readonly string[], secrets: Environment = {}, input?: string): Promise<Ended> {
  return run(process.execPath, [MAIN, ...args], secrets, input)
}

function run(program: string, args: readonly string[], extra: Environment, input?: string): Promise<Ended> {
  const inherited = Object.entries(process.env).filter(([name]) => !name.startsWith('VIRTVAULT_'))
  const child = spawn(program, args, {
    env: { ...Object.fromEntries(inherited), ...extra },
    stdio: ['pipe', 'pipe', 'pipe'],
  })
  child.stdin.on('error', () => undefined)
  child.stdin.end(input)
  let stdout = ''
  let stderr = ''
  child.stdout.on('data', (part: Buffer) => (stdout += part.toString()))
  child.stderr.on('data', (part: Buffer) => (stderr += part.toString()))
  return new Promise((done, fail) => {
    child.once('error', fail)
    child.once('close', code => done({ code, stdout, stderr }))
  })
}

function parsed(text: string): Record<string, unknown> {
  const document: Record<string, unknown> = JSON.parse(text)
  return document
}

/** A secret in a file that only we may read. */
function secretFile(folder: string, name: string, secret: string): string {
  const path = join(folder, name)
  writeFileSync(path, `${secret}\n`, { mode: 0o600 })
  return path
}

t.test('a store is made, opened, given and taken passphrases, all by the program', async t => {
  const folder = t.testdir()
  const store = join(folder, 'store')
  const first = { VIRTVAULT_PASSPHRASE_FILE: secretFile(folder, 'first', 'passphrase one') }
  const second = { VIRTVAULT_PASSPHRASE_FILE: secretFile(folder, 'second', 'passphrase two') }
  const third = { VIRTVAULT_PASSPHRASE_COMMAND: 'echo passphrase three' }
  const at = (...words: string[]) => [...words, '-t', store]

  const made = await virtvault(['init', store, '--json'], first)
  t.match(parsed(made.stdout), { schema: 'virtvault/init/1', encrypted: true })
  t.equal((await virtvault(at('list'), first)).code, 0)
  t.equal((await virtvault(at('list'))).code, 12, 'no passphrase')
  t.equal((await virtvault(at('list'), second)).code, 12, 'a wrong one')

  const added = await virtvault(at('key', 'add', '--label', 'ops', '--json'), {
    ...first,
    VIRTVAULT_NEW_PASSPHRASE_FILE: second.VIRTVAULT_PASSPHRASE_FILE,
  })
  t.match(parsed(added.stdout), { schema: 'virtvault/key-add/1', ok: true })
  t.equal((await virtvault(at('list'), second)).code, 0)
  const listed = await virtvault(at('key', 'list', '--json'))
  t.match(parsed(listed.stdout), {
    schema: 'virtvault/key-list/1',
    slots: [{ label: 'init', kdf: { n: 131072 } }, { label: 'ops' }],
  })
  t.match((await virtvault(at('key', 'list'))).stdout, /^SLOT +LABEL +CREATED +SCRYPT\n[0-9a-f]{8} +init /)

  const changed = await virtvault(at('key', 'passwd'), {
    ...second,
    VIRTVAULT_NEW_PASSPHRASE_COMMAND: 'echo passphrase three',
  })
  t.equal(changed.code, 0)
  t.equal((await virtvault(at('list'), second)).code, 12)
  t.equal((await virtvault(at('list'), third)).code, 0)

  const slots = readdirSync(join(store, 'keys')).map(name => name.slice(0, 32))
  const own = (
    parsed(
      (
        await virtvault(at('key', 'passwd', '--json'), {
          ...third,
          VIRTVAULT_NEW_PASSPHRASE: 'passphrase three',
        })
      ).stdout,
    ) as { slot: string }
  ).slot
  t.equal(slots.length, 2)
  const other = readdirSync(join(store, 'keys'))
    .find(name => !name.startsWith(own))!
    .slice(0, 10)
  t.equal((await virtvault(at('key', 'remove', other), third)).code, 15, 'asks, and nobody is there')
  t.equal((await virtvault(at('key', 'remove', other, '--yes'), first)).code, 0)
  t.equal((await virtvault(at('list'), first)).code, 12)
  t.equal((await virtvault(at('key', 'remove', own, '--yes'), third)).code, 15, 'the last one stays')
  t.equal((await virtvault(at('key', 'remove', 'ffffffff', '--yes'), third)).code, 4)
  t.equal((await virtvault(at('list'), third)).code, 0)
})

t.test('an exported key opens the store and makes a new passphrase where all are lost', async t => {
  const folder = t.testdir()
  const store = join(folder, 'store')
  await virtvault(['init', store], { VIRTVAULT_PASSPHRASE: 'lost' })

  const exported = await virtvault(['key', 'export', '-t', store], { VIRTVAULT_PASSPHRASE: 'lost' })
  t.match(exported.stdout, /^VVKEY1(-[0-9A-Z]{4}){16}\n$/)
  t.match(exported.stderr, /whoever has it/)
  t.equal((await virtvault(['list', '-t', store], { VIRTVAULT_PASSPHRASE: exported.stdout.trim() })).code, 0)

  const fresh = { VIRTVAULT_NEW_PASSPHRASE: 'found' }
  const imported = await virtvault(['key', 'import', '--from', '-', '-t', store], fresh, exported.stdout)
  t.equal(imported.code, 0, imported.stderr)
  t.equal((await virtvault(['list', '-t', store], { VIRTVAULT_PASSPHRASE: 'found' })).code, 0)
  const mistyped = exported.stdout.replace(/-(.)/, (_, letter) => (letter === 'A' ? '-B' : '-A'))
  t.equal((await virtvault(['key', 'import', '--from', '-', '-t', store], fresh, mistyped)).code, 12)
  t.equal((await virtvault(['key', 'import', '-t', store], fresh)).code, 2, 'nobody to ask')
})

t.test('init encrypts where a passphrase is configured, and otherwise only if told to', async t => {
  const folder = t.testdir()
  const key = secretFile(folder, 'key', 'configured')
  const config = join(folder, 'config.yml')
  writeFileSync(
    config,
    [
      'targets:',
      `  nas: { path: ${folder}/nas, encryption: { passphrase_file: ${key} } }`,
      `  plain: { path: ${folder}/plain, encryption: none }`,
      `  unit: { path: ${folder}/nas, encryption: { passphrase_credential: key } }`,
      `  unsaid: { path: ${folder}/unsaid }`,
      '',
    ].join('\n'),
    { mode: 0o600 },
  )
  const init = (name: string, args: readonly string[] = [], secrets: Environment = {}) =>
    virtvault(['--config', config, 'init', '-t', name, '--json', ...args], secrets)

  t.match(parsed((await init('nas')).stdout), { encrypted: true })
  t.equal((await virtvault(['--config', config, 'list', '-t', 'nas'])).code, 0)
  const inUnit = { CREDENTIALS_DIRECTORY: folder }
  t.equal((await virtvault(['--config', config, 'list', '-t', 'unit'], inUnit)).code, 0, 'a credential of systemd')
  t.equal((await virtvault(['--config', config, 'list', '-t', 'unit'])).code, 2, 'outside of its unit')
  t.match(parsed((await init('plain', [], { VIRTVAULT_PASSPHRASE: 'x' })).stdout), { encrypted: false })
  t.equal((await virtvault(['--config', config, 'list', '-t', 'plain'], { VIRTVAULT_PASSPHRASE: 'x' })).code, 0)
  t.match(parsed((await init('unsaid')).stdout), { encrypted: false })
  t.equal((await init('nas', ['--encryption', 'none'])).code, 2, 'flag and configuration differ')

  const none = await virtvault(['init', join(folder, 'a')])
  t.match(none.stdout, /not encrypted[^]*Whoever can read its files/)
  t.equal((await virtvault(['init', join(folder, 'b'), '--encryption', 'aes-256-gcm'])).code, 2, 'no passphrase')
  t.equal((await virtvault(['init', join(folder, 'b'), '--encryption', 'rot13'])).code, 2)
  t.equal((await virtvault(['list', '-t', join(folder, 'a')], { VIRTVAULT_PASSPHRASE: 'x' })).code, 12, 'not encrypted')
  t.equal((await virtvault(['key', 'list', '-t', join(folder, 'a')])).code, 1, 'no keys')
})

t.test('a passphrase given in two ways is a usage error, and never a flag', async t => {
  const folder = t.testdir()
  const store = join(folder, 'store')
  const file = secretFile(folder, 'key', 'x')
  await virtvault(['init', store], { VIRTVAULT_PASSPHRASE: 'x' })

  const two = await virtvault(['list', '-t', store], { VIRTVAULT_PASSPHRASE: 'x', VIRTVAULT_PASSPHRASE_FILE: file })
  t.equal(two.code, 2)
  t.match(two.stderr, /two ways, file and value/)
  t.equal((await virtvault(['list', '-t', store, '--passphrase', 'x'])).code, 2)
  t.equal((await virtvault(['list', '-t', store], { VIRTVAULT_PASSPHRASE_FD: '0' })).code, 2, 'an empty descriptor')
  t.equal((await virtvault(['list', '-t', store], { VIRTVAULT_PASSPHRASE_FD: '0' }, 'x\n')).code, 0)
  t.equal((await virtvault(['init', `${store}2`], { VIRTVAULT_PASSPHRASE_FD: '0' }, 'y')).code, 0)
  t.equal((await virtvault(['list', '-t', `${store}2`], { VIRTVAULT_PASSPHRASE: 'y' })).code, 0)
})

/** Runs the program on a terminal, answers each question in turn, and prints what the terminal showed. */
const TERMINAL = `
import os, pty, sys
answers = sys.argv[1].split('|')
pid, fd = pty.fork()
if pid == 0:
    os.execvp(sys.argv[2], sys.argv[2:])
shown = b''
asked = 0
while True:
    try:
        part = os.read(fd, 4096)
    except OSError:
        break
    if not part:
        break
    shown += part
    if shown.count(b': ') > asked and asked < len(answers) and shown.endswith(b': '):
        os.write(fd, answers[asked].encode() + b'\\r')
        asked += 1
_, status = os.waitpid(pid, 0)
sys.stdout.write(shown.decode())
sys.exit(os.waitstatus_to_exitcode(status))
`

t.test(
  'a person is asked at the terminal, twice for a new passphrase, and nothing is shown',
  requires('python3'),
  async t => {
    const store = join(t.testdir(), 'store')
    const typed = (answers: readonly string[], ...args: string[]) =>
      run('python3', ['-c', TERMINAL, answers.join('|'), process.execPath, MAIN, ...args], {})

    const made = await typed(['typed-secret', 'typed-secret'], 'init', store, '--encryption', 'aes-256-gcm')
    t.equal(made.code, 0, made.stdout)
    t.match(made.stdout, /A new passphrase: [^]*Once more: /)
    const listed = await typed(['typed-secret'], 'list', '-t', store)
    t.equal(listed.code, 0, listed.stdout)
    const wrong = await typed(['other-secret'], 'list', '-t', store)
    t.equal(wrong.code, 12, wrong.stdout)
    const differ = await typed(['typed-secret', 'new-secret', 'now-secret'], 'key', 'passwd', '-t', store)
    t.equal(differ.code, 2, differ.stdout)
    const stopped = await typed(['half a \u0003'], 'list', '-t', store)
    t.equal(stopped.code, 130, stopped.stdout)
    for (const { stdout } of [made, listed, wrong, differ]) t.notMatch(stdout, /-secret/)
  },
)

t.test('passphrase and keys are in no file, output, command line or child', async t => {
  const folder = t.testdir()
  const store = join(folder, 'store')
  const canary = 'Kanarienvogel-7391'
  const other = 'Wellensittich-2846'
  const outputs: string[] = []
  const kept = async (args: readonly string[], secrets: Environment) => {
    const { stdout, stderr } = await virtvault([...args, '-t', store], secrets)
    outputs.push(stdout, stderr)
    return stdout
  }

  await kept(['init'], { VIRTVAULT_PASSPHRASE: canary })
  await kept(['list', '-vv'], { VIRTVAULT_PASSPHRASE: canary })
  await kept(['list', '--json'], { VIRTVAULT_PASSPHRASE: canary, VIRTVAULT_PASSPHRASE_COMMAND: `echo ${other}` })
  await kept(['list', '-vv'], { VIRTVAULT_PASSPHRASE: `${canary}x` })
  await kept(['key', 'add', '-vv'], { VIRTVAULT_PASSPHRASE: canary, VIRTVAULT_NEW_PASSPHRASE: other })
  await kept(['list', '-vv'], { VIRTVAULT_PASSPHRASE_COMMAND: `echo ${canary} >&2; echo ${canary}; exit 3` })
  {
    const passphrase = given(canary)
    await using opened = await Store.open(store, { passphrase })
    await pull(opened, geometry, [
      [0, 1],
      [3, 2],
    ])
    const run = await opened.runs.begin('pull')
    await run[Symbol.asyncDispose]()
  }
  const { stdout: key } = await virtvault(['key', 'export', '-q', '-t', store], { VIRTVAULT_PASSPHRASE: canary })
  const master = Buffer.from(decodeExportedKey(key).master)

  // A command that gives one secret sees the other neither in its environment nor in ours to come.
  const spied = join(folder, 'spied')
  await kept(['key', 'add'], {
    VIRTVAULT_PASSPHRASE: canary,
    VIRTVAULT_NEW_PASSPHRASE_COMMAND: `cat /proc/self/environ /proc/$PPID/cmdline > ${spied}; echo third`,
  })
  t.ok(statSync(spied).size > 100)
  outputs.push(readFileSync(spied, 'latin1'))

  const needles = [
    canary,
    other,
    master,
    toHex(master),
    master.toString('base64'),
    key.trim(),
    key.trim().replaceAll('-', ''),
  ]
  const files = readdirSync(store, { recursive: true, encoding: 'utf8' }).filter(path =>
    statSync(join(store, path)).isFile(),
  )
  t.ok(files.some(path => path.endsWith('.point')) && files.some(path => path.startsWith('index')))
  for (const needle of needles) {
    for (const path of files) t.equal(readFileSync(join(store, path)).indexOf(needle), -1, path)
    for (const text of outputs) t.equal(Buffer.from(text, 'latin1').indexOf(needle), -1)
  }
  t.notMatch(readFileSync('/proc/self/cmdline', 'latin1'), canary)
})

t.test('all files of a store are its owner’s alone, whatever the umask', async t => {
  const store = join(t.testdir(), 'store')
  const before = process.umask(0)
  t.teardown(() => process.umask(before))

  t.equal((await virtvault(['init', store], { VIRTVAULT_PASSPHRASE: 'x' })).code, 0)
  t.equal(
    (await virtvault(['key', 'add', '-t', store], { VIRTVAULT_PASSPHRASE: 'x', VIRTVAULT_NEW_PASSPHRASE: 'y' })).code,
    0,
  )
  {
    await using opened = await Store.open(store, { passphrase: given('x') })
    const { point } = await pull(opened, geometry, [[0, 1]])
    await opened.points.annotate(point, { tags: ['a'] })
    const run = await opened.runs.begin('pull')
    await run[Symbol.asyncDispose]()
  }

  t.equal(statSync(store).mode & 0o777, 0o700)
  let seen = 0
  for (const path of readdirSync(store, { recursive: true, encoding: 'utf8' })) {
    // LevelDB makes its own as it likes (the program's umask is 077); the directory of the store keeps others out.
    if (path === 'index' || path.startsWith('index/')) continue
    const found = statSync(join(store, path))
    t.equal(found.mode & 0o777, found.isDirectory() ? 0o700 : 0o600, path)
    seen++
  }
  t.ok(seen > 15)
})

t.test('a process that holds keys leaves no core file', async t => {
  const store = join(t.testdir(), 'store')
  await virtvault(['init', store], { VIRTVAULT_PASSPHRASE: 'x' })

  await using _store = await Store.open(store, { passphrase: given('x') })

  t.match(readFileSync('/proc/self/limits', 'utf8'), /Max core file size +0 +0 /)
})
