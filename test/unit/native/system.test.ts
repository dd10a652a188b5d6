import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  closeSync,
  fstatSync,
  fsyncSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

import t, { type Test } from 'tap'

import { native } from '../../../src/native/binding.js'

const MiB = 1024 * 1024
const BINDING = fileURLToPath(new URL('../../../src/native/binding.js', import.meta.url))

const folder = mkdtempSync(join(tmpdir(), 'virtvault-system-'))
t.teardown(() => rmSync(folder, { recursive: true }))
let names = 0

function newPath(): string {
  return join(folder, `file-${names++}`)
}

function newFile(t: Test, content: string | Uint8Array = ''): number {
  const path = newPath()
  writeFileSync(path, content)
  return reopen(t, path)
}

function reopen(t: Test, path: string): number {
  const fd = openSync(path, 'r+')
  t.teardown(() => closeSync(fd))
  return fd
}

interface NodeOptions {
  readonly args?: readonly string[]
  readonly uid?: number
  readonly gid?: number
}

/** Runs a script in a child that prints a line when it is ready. */
async function startNode(script: string, how: NodeOptions = {}): Promise<{ child: ChildProcess; line: string }> {
  const source = `import { native } from ${JSON.stringify(BINDING)}\nimport fs from 'node:fs'\nimport { execFileSync } from 'node:child_process'\n${script}`
  const child = spawn(process.execPath, ['--input-type=module', '-e', source, ...(how.args ?? [])], {
    ...(how.uid === undefined ? {} : { uid: how.uid, gid: how.gid }),
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  return { child, line: await firstLine(child) }
}

async function firstLine(child: ChildProcess): Promise<string> {
  for await (const line of createInterface({ input: child.stdout! })) return line
  throw new Error('the child ended without a word')
}

t.test('an exclusive lock keeps every other open file out until it is released', async t => {
  const path = newPath()
  writeFileSync(path, '')
  const [first, second] = [reopen(t, path), reopen(t, path)]

  t.equal(native().flock(first, 2), true)
  t.equal(native().flock(second, 2), false)
  t.equal(native().flock(second, 1), false)
  t.equal(native().flock(first, 0), true)
  t.equal(native().flock(second, 2), true)
})

t.test('shared locks live together and keep an exclusive one out', async t => {
  const path = newPath()
  writeFileSync(path, '')
  const [first, second] = [reopen(t, path), reopen(t, path)]

  t.equal(native().flock(first, 1), true)
  t.equal(native().flock(second, 1), true)
  t.equal(native().flock(second, 2), false)
})

t.test('a lock vanishes with its process, killed without warning', async t => {
  const path = newPath()
  writeFileSync(path, '')
  const { child, line } = await startNode(
    `const fd = fs.openSync(process.argv[1], 'r+')
     console.log(native().flock(fd, 2))
     process.stdin.resume()`,
    { args: [path] },
  )
  const fd = reopen(t, path)

  t.equal(line, 'true')
  t.equal(native().flock(fd, 2), false)
  child.kill('SIGKILL')
  await once(child, 'exit')
  t.equal(native().flock(fd, 2), true)
})

t.test('a lock on a closed descriptor is E_IO with its errno', async t => {
  t.throws(() => native().flock(999_999, 2), { code: 'E_IO', errno: 9 })
})

t.test('a file is renamed only where nothing stands', async t => {
  const [from, to, other] = [newPath(), newPath(), newPath()]
  writeFileSync(from, 'mine')
  writeFileSync(other, 'theirs')

  t.equal(native().renameNoReplace(from, other), false)
  t.equal(readFileSync(other, 'utf8'), 'theirs')
  t.equal(native().renameNoReplace(from, to), true)
  t.equal(readFileSync(to, 'utf8'), 'mine')
  t.throws(() => native().renameNoReplace(from, to), { code: 'E_IO', errno: 2 }, 'the source is gone')
})

t.test('a sparse file shows its data and nothing else', async t => {
  const fd = newFile(t)
  ftruncateSync(fd, 8 * MiB)
  writeSync(fd, Buffer.alloc(65_536, 1), 0, 65_536, MiB)
  writeSync(fd, Buffer.alloc(65_536, 1), 0, 65_536, 4 * MiB)
  fsyncSync(fd)

  t.same(native().nextData(fd, 0), [MiB, MiB + 65_536])
  t.same(native().nextData(fd, MiB + 100), [MiB + 100, MiB + 65_536])
  t.same(native().nextData(fd, MiB + 65_536), [4 * MiB, 4 * MiB + 65_536])
  t.equal(native().nextData(fd, 5 * MiB), undefined)
  t.equal(native().nextData(fd, 100 * MiB), undefined)
  t.equal(native().nextData(newFile(t), 0), undefined)
})

t.test('what cannot seek data or be measured as a device is E_UNSUPPORTED', async t => {
  const fifo = newPath()
  execFileSync('mkfifo', [fifo])
  const pipe = reopen(t, fifo)
  const fd = newFile(t)

  t.throws(() => native().nextData(pipe, 0), { code: 'E_UNSUPPORTED' })
  t.throws(() => native().blockDeviceSize(fd), { code: 'E_UNSUPPORTED' })
})

t.test('a range is reserved, punched and zeroed, and the size stays', async t => {
  const path = newPath()
  writeFileSync(path, Buffer.alloc(MiB, 1))
  const fd = reopen(t, path)
  const allocated = (): number => fstatSync(fd).blocks * 512

  await native().fallocate(fd, 'punch', 65_536, 131_072)
  t.ok(allocated() < MiB)
  await native().fallocate(fd, 'reserve', 0, 4 * MiB)
  t.ok(allocated() >= 4 * MiB)
  t.equal(fstatSync(fd).size, MiB)
  await native()
    .fallocate(fd, 'zero', MiB - 4096, 8192)
    .catch((error: unknown) => {
      // tmpfs and some others cannot.
      t.match(error, { code: 'E_UNSUPPORTED' })
      writeSync(fd, Buffer.alloc(4096), 0, 4096, MiB - 4096)
    })

  const expected = Buffer.alloc(MiB, 1)
    .fill(0, 65_536, 196_608)
    .fill(0, MiB - 4096)
  t.ok(readFileSync(path).equals(expected))
  t.equal(fstatSync(fd).size, MiB)
})

t.test('allocating what is no file is E_UNSUPPORTED, on a read-only descriptor E_IO', async t => {
  const nothing = openSync('/dev/null', 'r+')
  t.teardown(() => closeSync(nothing))
  const readOnly = openSync(BINDING, 'r')
  t.teardown(() => closeSync(readOnly))

  await t.rejects(native().fallocate(nothing, 'reserve', 0, 4096), { code: 'E_UNSUPPORTED' })
  await t.rejects(native().fallocate(readOnly, 'reserve', 0, 4096), { code: 'E_IO', errno: 9 })
})

t.test('dropping and advising leave the bytes of a file alone', async t => {
  const path = newPath()
  writeFileSync(path, Buffer.alloc(MiB, 7))
  const fd = reopen(t, path)

  native().adviseAccess(fd, 'sequential')
  native().adviseAccess(fd, 'random')
  await native().dropCache(fd, 4096, 500_000)
  await native().syncfs(fd)

  t.ok(readFileSync(path).equals(Buffer.alloc(MiB, 7)))
  await t.rejects(native().dropCache(999_999, 0, 4096), { code: 'E_IO', errno: 9 })
  await t.rejects(native().syncfs(999_999), { code: 'E_IO', errno: 9 })
})

for (const [kind, prefix] of [
  ['path', ''],
  ['abstract name', '@'],
] as const) {
  t.test(`a notification reaches a socket by ${kind}, once`, async t => {
    const name = prefix + newPath()
    const receiver = spawn(
      'python3',
      [
        '-uc',
        `import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1].replace('@', '\\0', 1))
print('ready')
print(repr(s.recv(4096)))
s.setblocking(False)
try: print('again', s.recv(4096))
except BlockingIOError: print('once')`,
        name,
      ],
      { stdio: ['ignore', 'pipe', 'inherit'] },
    )
    t.teardown(() => receiver.kill())
    const lines = createInterface({ input: receiver.stdout })[Symbol.asyncIterator]()
    const next = async (): Promise<string> => String((await lines.next()).value)

    t.equal(await next(), 'ready')
    t.equal(native().sdNotify(name, 'READY=1\nSTATUS=läuft'), true)
    t.equal(await next(), String.raw`b'READY=1\nSTATUS=l\xc3\xa4uft'`)
    t.equal(await next(), 'once')
  })
}

t.test('a notification to nobody is false', async t => {
  t.equal(native().sdNotify('', 'READY=1'), false)
  t.equal(native().sdNotify(newPath(), 'READY=1'), false)
  t.equal(native().sdNotify('@virtvault-nobody-is-here', 'READY=1'), false)
  t.equal(native().sdNotify('relative', 'READY=1'), false)
  t.equal(native().sdNotify(`/${'x'.repeat(200)}`, 'READY=1'), false)
})

t.test('priority is lowered for every thread of the process', async t => {
  const { child, line } = await startNode(
    `await fs.promises.stat('/')
     native().setPriority(7, 2, 6)
     const nice = fs.readdirSync('/proc/self/task').map(id => fs.readFileSync('/proc/self/task/' + id + '/stat', 'utf8').split(') ')[1].split(' ')[16])
     const io = execFileSync('ionice', ['-p', String(process.pid)], { encoding: 'utf8' }).trim()
     console.log(JSON.stringify({ nice: [...new Set(nice)], several: nice.length > 1, io }))`,
  )
  t.teardown(() => child.kill())

  t.same(JSON.parse(line), { nice: ['7'], several: true, io: 'best-effort: prio 6' })
})

t.test('a protected process leaves no core, and its memory belongs to root', async t => {
  // The owner of /proc/self/mem follows "dumpable"; root cannot see the difference, so not as root.
  const owner = process.getuid!() === 0 ? 65_534 : process.getuid!()
  const { child, line } = await startNode(
    `const owner = () => fs.statSync('/proc/self/mem').uid
     const before = owner()
     native().protectMemory()
     const limit = fs.readFileSync('/proc/self/limits', 'utf8').match(/Max core file size +(\\d+) +(\\d+)/)
     console.log(before, owner(), limit[1], limit[2])`,
    { uid: owner, gid: owner },
  )
  t.teardown(() => child.kill())

  t.equal(line, `${owner} 0 0 0`)
})

t.test('a wrong argument is a TypeError that names it', async t => {
  const wrong = native() as unknown as Record<string, (...args: unknown[]) => unknown>
  const cases: [string, unknown[], RegExp][] = [
    ['flock', [-1, 2], /^fd /],
    ['flock', ['1', 2], /^fd /],
    ['flock', [1, 3], /^mode /],
    ['renameNoReplace', ['a\0b', 'c'], /^from /],
    ['renameNoReplace', ['a'], /^to /],
    ['dropCache', [1, -1, 5], /^offset /],
    ['dropCache', [1, 0, 0], /^length /],
    ['dropCache', [1, Number.MAX_SAFE_INTEGER, 1], /^length /],
    ['adviseAccess', [1, 'often'], /^access /],
    ['fallocate', [1, 'shrink', 0, 1], /^mode /],
    ['fallocate', [1, 'zero', 0.5, 1], /^offset /],
    ['nextData', [1, Number.POSITIVE_INFINITY], /^offset /],
    ['syncfs', [2 ** 31], /^fd /],
    ['sdNotify', ['/x'], /^message /],
    ['setPriority', [20, 2, 0], /^nice /],
    ['setPriority', [0, 1, 0], /^ioClass /],
    ['setPriority', [0, 2, 8], /^ioLevel /],
  ]

  for (const [name, args, message] of cases) t.throws(() => wrong[name]!(...args), { name: 'TypeError', message })
})
