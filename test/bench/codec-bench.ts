// MB (10^6) per second of processor time, of the codec's steps over 16 MiB
// batches of 64 KiB pieces, as a pull makes them. A batch runs on one thread, so
// on an idle machine this is its wall time too; on a busy one it stays true. The
// lines take turns and the best turn of each counts.
//
//     node dist/test/bench/codec-bench.js [turns]
import { randomFillSync } from 'node:crypto'
import { cpus } from 'node:os'

import { native } from '../../src/native/binding.js'
import type { RecordCipher } from '../../src/native/codec.js'

const PIECE = 65_536
const PIECES = 256
const BATCH = PIECE * PIECES
const KIND = 1

const spans = Uint32Array.from({ length: PIECES * 2 }, (_, i) => (i % 2 === 0 ? (i / 2) * PIECE : PIECE))
const cipher: RecordCipher = { packKey: new Uint8Array(32).fill(7), context: new Uint8Array(32).fill(9) }

/** English-like words with numbers between: about 3.3 to 1 at level 1. */
function textBatch(): Buffer {
  const words = 'the quick brown fox jumps over lazy dogs while libvirt reads blocks of a disk and stores chunks'.split(
    ' ',
  )
  const bytes = Buffer.alloc(BATCH)
  let seed = 1
  for (let at = 0; at < BATCH; ) {
    seed = (Math.imul(seed, 1_103_515_245) + 12_345) & 0x7fffffff
    at += bytes.write(`${words[(seed >> 16) % words.length] ?? ''} ${seed % 1000}\n`, at, 'latin1')
  }
  return bytes
}

function randomBatch(): Buffer {
  const bytes = Buffer.alloc(BATCH)
  for (let at = 0; at < BATCH; at += PIECE) randomFillSync(bytes, at, PIECE)
  return bytes
}

/** By turns a piece of text, a random one, one half zero; the zero test takes whole pieces of zero out before. */
function mixedBatch(text: Buffer, random: Buffer): Buffer {
  const bytes = Buffer.alloc(BATCH)
  for (let piece = 0; piece < PIECES; piece++) {
    const at = piece * PIECE
    if (piece % 3 === 0) text.copy(bytes, at, at, at + PIECE)
    if (piece % 3 === 1) random.copy(bytes, at, at, at + PIECE)
    if (piece % 3 === 2) text.copy(bytes, at, at, at + PIECE / 2)
  }
  return bytes
}

interface Line {
  readonly name: string
  readonly run: () => Promise<unknown>
  best: number
}

const lines: Line[] = []
const add = (name: string, run: () => Promise<unknown>): unknown => lines.push({ name, run, best: Infinity })

const text = textBatch()
const random = randomBatch()
const zero = Buffer.alloc(BATCH)
const out = Buffer.alloc(BATCH)

add('hash random', () => native().hashChunks(random, spans, { kind: KIND }))
add('hash random, keyed', () => native().hashChunks(random, spans, { kind: KIND, key: cipher.packKey }))
add('hash zero', () => native().hashChunks(zero, spans, { kind: KIND }))
add('crc32c', () => Promise.resolve(native().crc32c(random)))

for (const [name, batch] of [
  ['random', random],
  ['text', text],
  ['mixed', mixedBatch(text, random)],
] as const) {
  const { ids } = await native().hashChunks(batch, spans, { kind: KIND })
  for (const level of [1, 3]) {
    for (const verify of [false, true]) {
      for (const key of [undefined, cipher]) {
        const options = { kind: KIND, ids, firstRecord: 0, level, verify, cipher: key }
        const title = `${name}, level ${level}${key === undefined ? '' : ', encrypted'}`
        add(`encode ${title}${verify ? ', verify' : ''}`, () => native().encodeRecords(batch, spans, options))
        if (verify) continue
        const encoded = await native().encodeRecords(batch, spans, options)
        const offsets = encoded.places.filter((_, i) => i % 2 === 0)
        const decoding = { kind: KIND, ids, offsets, outSpans: spans, cipher: key }
        add(`decode ${title} (${(BATCH / encoded.bytes.length).toFixed(2)} : 1)`, async () => {
          const statuses = await native().decodeRecords(encoded.bytes, out, decoding)
          if (statuses.some(status => status !== 0)) throw new Error('a record did not decode')
        })
      }
    }
  }
}

const turns = Number(process.argv[2] ?? 5)
for (let turn = 0; turn < turns; turn++) {
  for (const line of lines) {
    const start = process.cpuUsage()
    await line.run()
    const { user, system } = process.cpuUsage(start)
    line.best = Math.min(line.best, (user + system) / 1000)
  }
}

console.log(`# ${cpus()[0]?.model ?? 'unknown'}, Node ${process.version}, OpenSSL ${process.versions.openssl}`)
for (const { name, best } of lines)
  console.log(`${name.padEnd(48)} ${(BATCH / best / 1000).toFixed(0).padStart(6)} MB/s`)
console.log(`peak memory ${(process.resourceUsage().maxRSS / 1024).toFixed(0)} MiB`)
