import { execFile } from 'node:child_process'
import { stat } from 'node:fs/promises'
import { promisify } from 'node:util'

import type { StoredBitmap } from '../model/domain-now.js'

const PROBE_TIMEOUT_MS = 10_000
const MAX_ANSWER_BYTES = 16 * 1024 * 1024

/** What an image says of itself; every field that is absent is not known or does not apply. */
export interface ProbedImage {
  readonly virtualSize: number | undefined
  readonly clusterSize: number | undefined
  readonly compat: string | undefined
  readonly extendedL2: boolean | undefined
  readonly lazyRefcounts: boolean | undefined
  readonly compressionType: string | undefined
  readonly dataFile: string | undefined
  /** Of the top image. */
  readonly bitmaps: readonly StoredBitmap[]
  /** Nearest first. */
  readonly backingFiles: readonly string[]
  /** `device:inode` of the top image. */
  readonly identity: string | undefined
  /** The same of each of `backingFiles`, empty for what is no file here; undefined where nobody looked. */
  readonly backingIdentities?: readonly string[] | undefined
}

/**
 * Asks `qemu-img info` about a local image that may be in use. The format must
 * be given: probing would let a guest that writes an image header into a raw
 * disk have any file of the host opened. undefined where there is no such
 * file, no qemu-img, or no sense in its answer: the facts are then not known,
 * which is no reason to fail a backup.
 */
export async function probeImage(path: string, format: string, signal: AbortSignal): Promise<ProbedImage | undefined> {
  const identity = await fileIdentity(path)
  if (identity === undefined) return undefined
  try {
    const { stdout } = await promisify(execFile)('qemu-img', [...infoArguments(path, format)], {
      timeout: PROBE_TIMEOUT_MS,
      maxBuffer: MAX_ANSWER_BYTES,
      signal,
    })
    const decoded = decodeInfo(stdout)
    const below = await Promise.all(decoded.backingFiles.map(file => fileIdentity(file)))
    return { ...decoded, identity, backingIdentities: below.map(known => known ?? '') }
  } catch {
    signal.throwIfAborted()
    return undefined
  }
}

/** What `qemu-img` is asked with. */
export function infoArguments(path: string, format: string): readonly string[] {
  return ['info', '-U', '-f', format, '--backing-chain', '--output=json', '--', path]
}

async function fileIdentity(path: string): Promise<string | undefined> {
  try {
    const { dev, ino } = await stat(path)
    return `${dev}:${ino}`
  } catch {
    return undefined
  }
}

/** Decodes the output of `qemu-img info --backing-chain --output=json`. Throws what JSON.parse throws. */
export function decodeInfo(json: string): Omit<ProbedImage, 'identity'> {
  const parsed: unknown = JSON.parse(json)
  const layers: readonly unknown[] = Array.isArray(parsed) ? parsed : [parsed]
  const top = new Fields(layers[0])
  const specific = new Fields(new Fields(top.at('format-specific')).at('data'))
  return {
    virtualSize: top.number('virtual-size'),
    clusterSize: top.number('cluster-size'),
    compat: specific.string('compat'),
    extendedL2: specific.boolean('extended-l2'),
    lazyRefcounts: specific.boolean('lazy-refcounts'),
    compressionType: specific.string('compression-type'),
    dataFile: specific.string('data-file'),
    bitmaps: specific.list('bitmaps').flatMap(decodeBitmap),
    backingFiles: layers.slice(1).flatMap(layer => new Fields(layer).string('filename') ?? []),
  }
}

function decodeBitmap(value: unknown): StoredBitmap[] {
  const fields = new Fields(value)
  const name = fields.string('name')
  const flags = fields.list('flags')
  return name === undefined ? [] : [{ name, isSound: flags.includes('auto') && !flags.includes('in-use') }]
}

/** Fields of something that may be an object. */
class Fields {
  readonly #fields: ReadonlyMap<string, unknown>

  constructor(value: unknown) {
    this.#fields = new Map(typeof value === 'object' && value !== null ? Object.entries(value) : [])
  }

  at(key: string): unknown {
    return this.#fields.get(key)
  }

  number(key: string): number | undefined {
    const value = this.at(key)
    return typeof value === 'number' && Number.isSafeInteger(value) ? value : undefined
  }

  string(key: string): string | undefined {
    const value = this.at(key)
    return typeof value === 'string' ? value : undefined
  }

  list(key: string): readonly unknown[] {
    const value = this.at(key)
    return Array.isArray(value) ? value : []
  }

  boolean(key: string): boolean | undefined {
    const value = this.at(key)
    return typeof value === 'boolean' ? value : undefined
  }
}
