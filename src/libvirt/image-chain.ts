import { execFile } from 'node:child_process'
import { stat } from 'node:fs/promises'
import { promisify } from 'node:util'

import { BackupError, messageOf } from '../base/errors.js'
import type { StoredBitmap } from '../model/domain-now.js'
import type { NetworkServer } from '../model/domain.js'

const TOOL_TIMEOUT_MS = 60_000
const MAX_ANSWER_BYTES = 16 * 1024 * 1024
/** libvirt itself stops at 200. */
const MAX_LAYERS = 200
/** The formats whose header can name an image below. */
const WITH_BACKING: readonly string[] = ['qcow2', 'qed', 'vmdk']

/** One image of a backing chain. */
export interface ChainImage {
  /** A URI where it is on an NBD server. */
  readonly path: string
  /** The server, and the name of the export there. */
  readonly nbd?: { readonly server: NetworkServer; readonly exportName: string } | undefined
  /** What opens it, where it is encrypted with LUKS. */
  readonly key?: Uint8Array | undefined
  readonly isBlockDevice: boolean
  readonly format: string
  readonly bitmaps: readonly StoredBitmap[]
}

/**
 * The images that a disk is made of, top first, each asked by itself: formats
 * come from the caller and then from each header, and are never guessed,
 * because a guest that writes an image header into a raw disk could otherwise
 * have any file of the host read. Works on images in use, but the bitmaps are
 * then those of the last time they were closed.
 *
 * Rejects with E_IO where an image cannot be asked, E_UNSUPPORTED where a
 * header does not name the format of the image below, E_TOOL_MISSING.
 */
export async function readChain(path: string, format: string, signal: AbortSignal): Promise<readonly ChainImage[]> {
  const chain: ChainImage[] = []
  let next: { readonly path: string; readonly format: string } | undefined = { path, format }
  while (next !== undefined) {
    if (chain.length === MAX_LAYERS) throw new BackupError('E_UNSUPPORTED', `${path} has too many images below it`)
    const said: ImageSays = await askImage(next, signal)
    if (chain.length > 0 && said.isEncrypted) throw encryptedBelow(next.path)
    chain.push({ path: next.path, format: next.format, isBlockDevice: await isBlock(next.path), bitmaps: said.bitmaps })
    next = said.below
  }
  return chain
}

/** Whose key is not in the domain's definition, but in what libvirt makes of it at its start. */
function encryptedBelow(path: string): BackupError {
  return new BackupError('E_UNSUPPORTED', `${path}, below another image, is encrypted`, {
    hints: ['back up the domain while it runs, or with --start-paused'],
  })
}

interface ImageSays {
  readonly isEncrypted: boolean
  readonly bitmaps: readonly StoredBitmap[]
  readonly below: { readonly path: string; readonly format: string } | undefined
}

async function askImage(image: { readonly path: string; readonly format: string }, signal: AbortSignal) {
  const args = ['info', '-U', '-f', image.format, '--output=json', '--', image.path]
  const answer = decodeImageInfo(await qemuImg(image.path, args, signal))
  if (answer === undefined) throw new BackupError('E_IO', `qemu-img says nothing sensible about ${image.path}`)
  if (answer.backing === undefined || !WITH_BACKING.includes(image.format)) return { ...answer, below: undefined }
  const { path, format } = answer.backing
  if (format === undefined) {
    throw new BackupError('E_UNSUPPORTED', `${image.path} does not say the format of ${path} below it`, {
      hints: [`say it in the image:   qemu-img rebase -u -b ${path} -F FORMAT ${image.path}`],
    })
  }
  return { ...answer, below: { path, format } }
}

/** Decodes `qemu-img info --output=json`; undefined where it is something else. */
export function decodeImageInfo(json: string):
  | {
      readonly size: number
      readonly bitmaps: readonly StoredBitmap[]
      readonly backing: { readonly path: string; readonly format: string | undefined } | undefined
      readonly isEncrypted: boolean
    }
  | undefined {
  const info = fieldsOf(parseJson(json))
  const size = info.get('virtual-size')
  if (typeof size !== 'number') return undefined
  const backing = text(info.get('full-backing-filename')) ?? text(info.get('backing-filename'))
  const listed = fieldsOf(fieldsOf(info.get('format-specific')).get('data')).get('bitmaps')
  const bitmaps: unknown[] = Array.isArray(listed) ? listed : []
  return {
    size,
    bitmaps: bitmaps.flatMap(bitmap => storedBitmap(fieldsOf(bitmap))),
    isEncrypted: info.get('encrypted') === true,
    backing: backing === undefined ? undefined : { path: backing, format: text(info.get('backing-filename-format')) },
  }
}

function storedBitmap(bitmap: ReadonlyMap<string, unknown>): StoredBitmap[] {
  const name = text(bitmap.get('name'))
  const flags = bitmap.get('flags')
  if (name === undefined || !Array.isArray(flags)) return []
  return [{ name, isSound: flags.includes('auto') && !flags.includes('in-use') }]
}

async function isBlock(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isBlockDevice()
  } catch (error) {
    throw new BackupError('E_IO', `${path} cannot be looked at: ${messageOf(error)}`, { cause: error })
  }
}

/** Its standard output. Rejects with E_DOMAIN_BUSY where the image is in use, E_TOOL_MISSING, E_IO. */
export async function qemuImg(path: string, args: readonly string[], signal?: AbortSignal): Promise<string> {
  try {
    const limits = { timeout: TOOL_TIMEOUT_MS, maxBuffer: MAX_ANSWER_BYTES }
    const options = signal === undefined ? limits : { ...limits, signal }
    return (await promisify(execFile)('qemu-img', [...args], options)).stdout
  } catch (error) {
    signal?.throwIfAborted()
    throw toolFailure(path, error)
  }
}

function toolFailure(path: string, error: unknown): BackupError {
  if (error instanceof Error && 'code' in error && error.code === 'ENOENT') {
    return new BackupError('E_TOOL_MISSING', 'qemu-img is not installed', { cause: error })
  }
  const said = error instanceof Error && 'stderr' in error ? String(error.stderr).trim() : messageOf(error)
  // QEMU's tools have one exit code, and speak English in every locale.
  return (
    inUse(path, said, error) ?? new BackupError('E_IO', `qemu-img cannot work on ${path}`, { why: said, cause: error })
  )
}

/** What QEMU's words mean where another process has the image open; undefined where they say something else. */
export function inUse(path: string, said: string, cause: unknown): BackupError | undefined {
  if (!/Failed to get .* lock/.test(said)) return undefined
  return new BackupError('E_DOMAIN_BUSY', `${path} is in use`, {
    why: said.split('\n')[0] ?? said,
    hints: ['a domain runs on it, or another program has it open'],
    cause,
  })
}

function parseJson(json: string): unknown {
  try {
    return JSON.parse(json)
  } catch {
    return undefined
  }
}

function fieldsOf(value: unknown): ReadonlyMap<string, unknown> {
  return new Map(typeof value === 'object' && value !== null ? Object.entries(value) : [])
}

function text(value: unknown): string | undefined {
  return typeof value === 'string' ? value : undefined
}
