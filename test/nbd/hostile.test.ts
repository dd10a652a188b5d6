import t from 'tap'

import { collect } from '../../src/base/async.js'
import { BackupError } from '../../src/base/errors.js'
import type { Extent } from '../../src/model/extent.js'
import { native } from '../../src/native/binding.js'
import { ExportReader } from '../../src/nbd/export-reader.js'
import {
  bytesAt,
  chunk,
  CHUNK,
  HostileServer,
  type Hostility,
  OPTION,
  optionReply,
  type Peer,
  REPLY,
  type Request,
  u32,
  u32s,
  u64,
} from './hostile-server.js'

/** Small, so that a hang shows; each case may use it twice, for one reconnect. */
const TIMEOUT_MS = 300
const CASE_LIMIT_MS = 5_000
const MIB = 1024 * 1024
const BITMAP = 'qemu:dirty-bitmap:b'
const DONE = 1

const dir = t.testdir()
const never = new AbortController().signal

interface Case extends Hostility {
  readonly title: string
  /** Codes of the error that must come; without any, right bytes must come. */
  readonly codes: readonly string[]
  readonly message?: RegExp
}

const SIZE_CASES: readonly Case[] = [
  { title: 'a negative size', size: -1n, codes: ['E_NBD', 'E_NBD_PROTOCOL'] },
  { title: 'the most negative size', size: -(2n ** 63n), codes: ['E_NBD', 'E_NBD_PROTOCOL'] },
  { title: 'a size of 2^62', size: 2n ** 62n, codes: ['E_NBD_PROTOCOL'], message: /impossible size/ },
  { title: 'a size of 2^53', size: 2n ** 53n, codes: ['E_NBD_PROTOCOL'], message: /impossible size/ },
  { title: 'a minimum block that is no power of two', blocks: [3, 4096, 32 * MIB], codes: ['E_NBD_PROTOCOL', ''] },
  { title: 'a minimum block of 1 GiB', blocks: [2 ** 30, 2 ** 30, 2 ** 30], codes: ['E_NBD_PROTOCOL', ''] },
  { title: 'a maximum block below the minimum', blocks: [4096, 4096, 512], codes: ['E_NBD_PROTOCOL', ''] },
  { title: 'a maximum block of nothing', blocks: [1, 4096, 0], codes: ['E_NBD_PROTOCOL', ''] },
]

const HANDSHAKE_CASES: readonly Case[] = [
  { title: 'silence instead of a greeting', greet: () => undefined, codes: ['E_TIMEOUT'] },
  {
    title: 'garbage instead of a greeting',
    greet: peer => peer.send(Buffer.alloc(4096, 'x')),
    codes: ['E_NBD_PROTOCOL'],
  },
  { title: 'a goodbye instead of a greeting', greet: peer => peer.drop(), codes: ['E_NBD'] },
  {
    title: 'a greeting of one byte per 50 ms',
    greet: peer => peer.dribble(Buffer.from('NBDMAGICIHAVEOPT\0\x03'), 50),
    codes: ['E_TIMEOUT'],
  },
  { title: 'silence after an option', option: () => true, codes: ['E_TIMEOUT'] },
  {
    title: 'option replies without end',
    option: onlyAt(OPTION.go, peer => {
      const info = Buffer.concat([Buffer.from([0, 1]), Buffer.alloc(1000, 'n')])
      peer.flood(Buffer.concat(Array.from({ length: 64 }, () => optionReply(OPTION.go, REPLY.info, info))))
    }),
    codes: ['E_TIMEOUT', 'E_NBD', 'E_NBD_PROTOCOL'],
  },
  {
    title: 'meta contexts without end',
    option: onlyAt(OPTION.setMeta, peer => {
      const context = Buffer.concat([u32(1), Buffer.from(BITMAP)])
      peer.flood(
        Buffer.concat(Array.from({ length: 64 }, () => optionReply(OPTION.setMeta, REPLY.metaContext, context))),
      )
    }),
    codes: ['E_TIMEOUT', 'E_NBD', 'E_NBD_PROTOCOL'],
  },
  {
    title: 'an option reply of 4 GiB',
    option: onlyAt(OPTION.go, peer =>
      peer.send(u64(0x3e889045565a9n), u32(OPTION.go), u32(REPLY.info), u32(2 ** 32 - 1)),
    ),
    codes: ['E_NBD', 'E_NBD_PROTOCOL', 'E_TIMEOUT'],
  },
  {
    title: 'an answer to another option',
    option: onlyAt(OPTION.go, peer => peer.optionReply(OPTION.list, REPLY.ack)),
    codes: ['E_NBD', 'E_NBD_PROTOCOL'],
  },
  {
    title: 'an export that is acknowledged but never described',
    option: onlyAt(OPTION.go, peer => peer.optionReply(OPTION.go, REPLY.ack)),
    codes: ['E_NBD', 'E_NBD_PROTOCOL', 'E_TIMEOUT'],
  },
  {
    title: 'an unknown export',
    option: onlyAt(OPTION.go, peer => peer.optionReply(OPTION.go, REPLY.unknown)),
    codes: ['E_NBD'],
  },
  {
    title: 'no structured replies',
    withoutStructuredReplies: true,
    codes: ['E_NBD_PROTOCOL'],
    message: /meta context/,
  },
  { title: 'no dirty context', grant: asked => asked.filter(name => name !== BITMAP), codes: ['E_NBD_PROTOCOL'] },
  { title: 'a context that nobody asked for', grant: () => ['base:surprise'], codes: ['E_NBD_PROTOCOL'] },
  { title: 'the dirty context under another name', grant: () => [`${BITMAP}2`], codes: ['E_NBD_PROTOCOL'] },
]

const STATUS_CASES: readonly Case[] = [
  { title: 'no extents at all', status: (peer, request) => peer.done(request), codes: ['E_NBD_PROTOCOL'] },
  {
    title: 'extents of one context only',
    status: (peer, request) => {
      peer.extents(request, 1, [request.length, 0])
      peer.done(request)
    },
    codes: ['E_NBD_PROTOCOL'],
  },
  {
    title: 'an extent of no length',
    status: statusOf([4096, 1, 0, 1, MIB - 4096, 1]),
    codes: ['E_NBD', 'E_NBD_PROTOCOL'],
  },
  { title: 'nothing but an extent of no length', status: statusOf([0, 1]), codes: ['E_NBD', 'E_NBD_PROTOCOL'] },
  { title: 'an extent beyond the range', status: statusOf([MIB, 1, MIB, 0]), codes: ['E_NBD', 'E_NBD_PROTOCOL'] },
  { title: 'a last extent that reaches too far', status: statusOf([2 ** 32 - 512, 1]), codes: ['', 'E_NBD_PROTOCOL'] },
  { title: 'half an extent', status: statusOf([MIB]), codes: ['E_NBD', 'E_NBD_PROTOCOL'] },
  { title: 'a list without extents', status: statusOf([]), codes: ['E_NBD', 'E_NBD_PROTOCOL'] },
  {
    title: 'a context id that was never named',
    status: (peer, request) => {
      peer.extents(request, 77, [request.length, 0])
      peer.done(request)
    },
    codes: ['E_NBD', 'E_NBD_PROTOCOL'],
  },
  {
    title: 'two answers for one context',
    status: (peer, request) => {
      peer.extents(request, 1, [request.length, 0])
      peer.extents(request, 1, [request.length, 1])
      peer.extents(request, 2, [request.length, 0])
      peer.done(request)
    },
    codes: ['E_NBD', 'E_NBD_PROTOCOL'],
  },
  {
    title: 'more extents than anybody needs',
    size: 2n ** 40n,
    status: statusOf(alternating(2 ** 20 + 1, 1)),
    codes: ['E_NBD', 'E_NBD_PROTOCOL'],
  },
  {
    title: 'a large disk in extents of 100 bytes',
    size: 2n ** 40n,
    status: statusOf(alternating(20_000, 100)),
    codes: ['E_NBD_PROTOCOL'],
  },
  { title: 'unknown flag bits', status: statusOf([MIB, 0x40]), codes: [''] },
  { title: 'silence to a block status', status: () => undefined, codes: ['E_TIMEOUT'] },
  {
    title: 'status chunks without end',
    status: (peer, request) => {
      const entries = Buffer.concat([u32(1), u32(MIB), u32(0)])
      const one = chunk(request.cookie, CHUNK.status, entries)
      peer.flood(Buffer.concat(Array.from({ length: 1000 }, () => one)))
    },
    codes: ['E_TIMEOUT', 'E_NBD', 'E_NBD_PROTOCOL'],
  },
]

const READ_CASES: readonly Case[] = [
  {
    title: 'a wrong cookie',
    read: (peer, request) => peer.answerRead({ ...request, cookie: request.cookie + 1_000n }),
    codes: ['E_NBD', 'E_NBD_PROTOCOL'],
  },
  {
    title: 'a short reply',
    read: (peer, request) => peer.data(request, request.offset, bytesAt(request.offset, request.length / 2), DONE),
    codes: ['E_NBD', 'E_NBD_PROTOCOL', 'E_NBD_READ'],
  },
  {
    title: 'one half sent twice',
    read: (peer, request) => {
      const half = bytesAt(request.offset, request.length / 2)
      peer.data(request, request.offset, half)
      peer.data(request, request.offset, half, DONE)
    },
    codes: ['E_NBD', 'E_NBD_PROTOCOL', 'E_NBD_READ'],
  },
  {
    title: 'overlapping data',
    read: (peer, request) => {
      peer.data(request, request.offset, bytesAt(request.offset, request.length - 512))
      peer.data(request, request.offset + request.length - 1024, Buffer.alloc(512, 0xee), DONE)
    },
    codes: ['E_NBD', 'E_NBD_PROTOCOL', 'E_NBD_READ'],
  },
  {
    title: 'data before the range',
    read: (peer, request) =>
      peer.data(request, Math.max(0, request.offset - 512), Buffer.alloc(request.length + 512), DONE),
    codes: ['E_NBD', 'E_NBD_PROTOCOL'],
  },
  {
    title: 'data beyond the range',
    read: (peer, request) => peer.data(request, request.offset + request.length, Buffer.alloc(512), DONE),
    codes: ['E_NBD', 'E_NBD_PROTOCOL'],
  },
  {
    title: 'a hole beyond the range',
    read: (peer, request) => {
      peer.chunk(request, CHUNK.hole, Buffer.concat([u64(BigInt(request.offset)), u32(2 ** 32 - 1)]), DONE)
    },
    codes: ['E_NBD', 'E_NBD_PROTOCOL'],
  },
  {
    title: 'no data at all',
    read: (peer, request) => peer.done(request),
    codes: ['E_NBD', 'E_NBD_PROTOCOL', 'E_NBD_READ'],
  },
  {
    title: 'a simple reply where structured ones were agreed',
    read: (peer, request) => peer.simple(request.cookie, 0, bytesAt(request.offset, request.length)),
    codes: ['E_NBD', 'E_NBD_PROTOCOL', 'E_NBD_READ'],
  },
  {
    title: 'a reply that breaks off',
    read: (peer, request) => {
      const whole = chunk(
        request.cookie,
        CHUNK.data,
        Buffer.concat([u64(BigInt(request.offset)), bytesAt(request.offset, request.length)]),
        DONE,
      )
      peer.send(whole.subarray(0, whole.length / 2))
      peer.socket.end()
    },
    codes: ['E_NBD', 'E_NBD_PROTOCOL'],
  },
  { title: 'silence to a read', read: () => undefined, codes: ['E_TIMEOUT'] },
  {
    title: 'a byte per 50 ms',
    read: (peer, request) => peer.dribble(chunk(request.cookie, CHUNK.data, bytesAt(0, 4096), DONE), 50),
    codes: ['E_TIMEOUT'],
  },
  {
    title: 'data out of order, in small chunks',
    read: (peer, request) => {
      for (let at = request.length - 4096; at >= 0; at -= 4096) {
        peer.data(request, request.offset + at, bytesAt(request.offset + at, 4096), at === 0 ? DONE : 0)
      }
    },
    codes: [''],
  },
  {
    title: 'empty chunks without end',
    read: (peer, request) => {
      const one = chunk(request.cookie, CHUNK.none, Buffer.alloc(0))
      peer.flood(Buffer.concat(Array.from({ length: 1000 }, () => one)))
    },
    codes: ['E_TIMEOUT', 'E_NBD', 'E_NBD_PROTOCOL', 'E_NBD_READ'],
  },
  {
    title: 'garbage as a reply',
    read: peer => peer.send(Buffer.alloc(65536, 0xa5)),
    codes: ['E_NBD', 'E_NBD_PROTOCOL'],
  },
  {
    title: 'a chunk of 4 GiB',
    read: (peer, request) =>
      peer.send(chunk(request.cookie, CHUNK.data, Buffer.alloc(0), DONE).subarray(0, 16), u32(2 ** 32 - 1)),
    codes: ['E_NBD', 'E_NBD_PROTOCOL', 'E_TIMEOUT'],
  },
  {
    title: 'an error of a made-up kind',
    read: (peer, request) => peer.chunk(request, 0x8fff, Buffer.concat([u32(5), Buffer.alloc(2)]), DONE),
    codes: ['E_NBD_READ', 'E_NBD', 'E_NBD_PROTOCOL'],
  },
  {
    title: 'an error at an offset beyond the range',
    read: (peer, request) =>
      peer.chunk(request, CHUNK.errorOffset, Buffer.concat([u32(22), Buffer.alloc(2), u64(2n ** 50n)]), DONE),
    codes: ['E_NBD_READ', 'E_NBD', 'E_NBD_PROTOCOL'],
  },
  {
    title: 'an error without a number',
    read: (peer, request) => peer.chunk(request, CHUNK.error, Buffer.concat([u32(0), Buffer.alloc(2)]), DONE),
    codes: ['E_NBD_READ', 'E_NBD', 'E_NBD_PROTOCOL'],
  },
]

for (const hostile of [...SIZE_CASES, ...HANDSHAKE_CASES, ...STATUS_CASES, ...READ_CASES]) {
  const isGood = hostile.codes.includes('')
  t.test(
    `${hostile.title}: ${hostile.codes.filter(code => code !== '').join(' or ')}${isGood ? ' or right bytes' : ''}`,
    async t => {
      const server = await HostileServer.start(t, dir, hostile)
      const started = performance.now()

      const outcome = await pull(server.socket)

      t.ok(performance.now() - started < CASE_LIMIT_MS, 'it ends in time')
      if (outcome instanceof BackupError) {
        t.ok(hostile.codes.includes(outcome.code), `${outcome.code}: ${outcome.message}`)
        if (hostile.message !== undefined) t.match(outcome.message, hostile.message)
      } else {
        t.ok(isGood, 'this server cannot be read rightly')
        t.same(outcome.problem, undefined)
      }
    },
  )
}

t.test('a server that misbehaves once is forgiven: right bytes after one reconnect', async t => {
  let lost = 0
  const server = await HostileServer.start(t, dir, {
    read: (peer, request) => {
      if (request.offset === 512 * 1024 && lost++ === 0) peer.drop()
      else peer.answerRead(request)
    },
  })

  const outcome = await pull(server.socket)

  t.notOk(outcome instanceof Error)
  t.equal(outcome instanceof Error ? '' : outcome.problem, undefined)
  t.equal(lost, 2)
})

t.test('a million extents of one byte are a fair answer', async t => {
  const encoded = u32s(alternating(1_000_000, 1))
  const server = await HostileServer.start(t, dir, {
    status: (peer, request) => {
      peer.extents(request, 1, encoded)
      peer.done(request)
    },
  })
  const connection = await native().nbdConnect({
    socket: server.socket,
    exportName: '',
    metaContexts: [BITMAP],
    requestTimeoutMs: 10_000,
  })

  const [list] = await connection.blockStatus(0, MIB)

  t.equal(list?.length, 2_000_000)
  t.strictSame(list?.subarray(0, 6), Float64Array.of(1, 0, 1, 1, 1, 0))
  await connection.close()
})

t.test('a list of exports that never ends is cut off', async t => {
  const server = await HostileServer.start(t, dir, {
    option: onlyAt(OPTION.list, peer => {
      const one = optionReply(OPTION.list, REPLY.server, Buffer.concat([u32(4), Buffer.from('disk')]))
      peer.flood(Buffer.concat(Array.from({ length: 1000 }, () => one)))
    }),
  })
  const started = performance.now()

  const listing = native().nbdList({ socket: server.socket, connectTimeoutMs: TIMEOUT_MS })

  await t.rejects(listing)
  t.ok(performance.now() - started < CASE_LIMIT_MS)
})

/** The right bytes and a plausible map, or what is wrong with them; a BackupError where the server was refused. */
async function pull(socket: string): Promise<BackupError | { readonly problem: string | undefined }> {
  const bytes = new Uint8Array(MIB).fill(0x77)
  try {
    await using reader = await ExportReader.open(
      { socket, connectTimeoutMs: TIMEOUT_MS },
      { exportName: '', dirtyBitmap: 'b', connections: 2, requestTimeoutMs: TIMEOUT_MS },
      never,
    )
    const extents = await collect(reader.extents(never))
    await reader.read(Float64Array.of(0, MIB, 0), bytes, never)
    return {
      problem: problemOf(extents, reader.size) ?? (Buffer.compare(bytes, RIGHT) === 0 ? undefined : 'wrong bytes'),
    }
  } catch (error) {
    if (error instanceof BackupError) return error
    throw error
  }
}

const RIGHT = bytesAt(0, MIB)

function problemOf(extents: readonly Extent[], size: number): string | undefined {
  let end = 0
  for (const extent of extents) {
    if (extent.offset !== end || extent.length <= 0) return `a gap at ${end}`
    end += extent.length
  }
  return end === size ? undefined : `covered ${end} of ${size}`
}

function onlyAt(option: number, misbehave: (peer: Peer) => void): (peer: Peer, option: number) => boolean {
  return (peer, asked) => {
    if (asked !== option) return false
    misbehave(peer)
    return true
  }
}

/** `count` extents of `length` bytes, flags 0 and 1 in turn. */
function alternating(count: number, length: number): number[] {
  return Array.from({ length: 2 * count }, (_, i) => (i % 2 === 0 ? length : (i >> 1) % 2))
}

/** The same entries for both contexts. */
function statusOf(entries: readonly number[]): (peer: Peer, request: Request) => void {
  const encoded = u32s(entries)
  return (peer, request) => {
    peer.extents(request, 1, encoded)
    peer.extents(request, 2, encoded)
    peer.done(request)
  }
}
