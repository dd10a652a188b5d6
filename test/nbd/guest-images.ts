import { execFileSync } from 'node:child_process'
import { closeSync, openSync, readSync, statSync } from 'node:fs'

import { chunkLength } from '../../src/model/disk-tree.js'
import { storeDisk } from './served-store.js'

const CHUNK = 64 * 1024
const MIB = 1024 * 1024

const PATH = `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin`

/** Runs a shell script with `arguments` as $1, $2, …; throws with what it printed. */
export function script(text: string, ...args: readonly string[]): string {
  return execFileSync('bash', ['-euc', text, 'bash', ...args], {
    env: { ...process.env, PATH },
    stdio: 'pipe',
  }).toString()
}

/** A disk image with a partition for each of `parts`, which are images themselves, from 1 MiB on. */
export function partitioned(image: string, label: 'gpt' | 'dos', parts: readonly string[]): void {
  const sizes = parts.map(part => statSync(part).size)
  const total = sizes.reduce((sum, size) => sum + size, 2 * MIB)
  const lines = [`label: ${label}`, ...sizes.map(size => `size=${size / 512}`)].join('\n')
  script('truncate -s "$1" "$2"; printf "%s\\n" "$3" | sfdisk -q "$2"', `${total}`, image, lines)
  let at = MIB
  for (const [i, part] of parts.entries()) {
    script('dd if="$1" of="$2" bs=1M seek="$3" conv=notrunc,sparse status=none', part, image, `${at / MIB}`)
    at += sizes[i]!
  }
}

/** Stores an image as `web01@latest:vda` of a new store. */
export async function storeImage(location: string, image: string): Promise<void> {
  const file = openSync(image, 'r')
  const geometry = { size: statSync(image).size, chunkSize: CHUNK }
  const bytes = (chunk: number) => {
    const buffer = Buffer.alloc(chunkLength(geometry, chunk))
    readSync(file, buffer, 0, buffer.length, chunk * CHUNK)
    return buffer
  }
  const zeros = Buffer.alloc(CHUNK)
  const isZero = (chunk: number) => zeros.subarray(0, chunkLength(geometry, chunk)).equals(bytes(chunk))
  await storeDisk(location, { ...geometry, fill: chunk => (isZero(chunk) ? 'hole' : 'data'), bytes })
  closeSync(file)
}
