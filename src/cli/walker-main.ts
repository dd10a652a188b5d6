import { createWriteStream } from 'node:fs'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import type { Writable } from 'node:stream'

import { BackupError, errorCodeOf, messageOf } from '../base/errors.js'
import { copyPaths, listEntries, readBytes, type WalkAnswer, type WalkOrder } from '../files/walker.js'

/**
 * The process that looks into mounted file systems of guests. Its parent serves
 * the disks that they are on, and would wait for itself if it looked. Orders
 * come as one JSON line, answers go to descriptor 3, bytes of a file to the
 * standard output.
 */

const answers = createWriteStream('', { fd: 3 })
const ended = new AbortController()
// The parent decides what Ctrl-C means; without it there is nobody to work for.
process.on('SIGINT', () => undefined)
process.on('SIGTERM', () => ended.abort())
process.stdin.on('end', () => ended.abort())
answers.on('error', () => ended.abort())

async function send(to: Writable, bytes: string | Buffer): Promise<void> {
  if (!to.write(bytes)) await Promise.race([once(to, 'drain'), once(to, 'close')])
}

const answer = (one: WalkAnswer) => send(answers, `${JSON.stringify(one)}\n`)

async function work(order: WalkOrder): Promise<WalkAnswer> {
  switch (order.kind) {
    case 'list':
      for await (const entry of listEntries(order)) {
        ended.signal.throwIfAborted()
        await answer({ kind: 'entry', entry })
      }
      return { kind: 'done' }
    case 'print': {
      let bytes = 0
      for await (const part of readBytes(order)) {
        ended.signal.throwIfAborted()
        await send(process.stdout, part)
        bytes += part.length
      }
      return { kind: 'done', bytes }
    }
    case 'copy': {
      const report = (one: WalkAnswer) => void answers.write(`${JSON.stringify(one)}\n`)
      return { kind: 'done', tally: await copyPaths(order, report, ended.signal) }
    }
  }
}

async function main(): Promise<void> {
  const lines = createInterface({ input: process.stdin })
  const [line] = (await once(lines, 'line')) as [string]
  const last = await work(JSON.parse(line) as WalkOrder).catch((error: unknown): WalkAnswer => {
    const { why, hints } = error instanceof BackupError ? error : { why: undefined, hints: [] }
    return { kind: 'error', code: errorCodeOf(error), message: messageOf(error), why, hints }
  })
  await answer(last)
  await new Promise(resolve => answers.end(resolve))
  process.stdin.destroy()
}

process.stdout.on('error', () => ended.abort())
await main()
