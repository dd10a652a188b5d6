import { BackupError } from '../base/errors.js'
import type { StoredBitmap } from '../model/domain-now.js'
import type { ImageTools } from './image-tools.js'
import type { NetworkImage } from './network-images.js'

/** libvirt itself stops at 200. */
const MAX_LAYERS = 200
/** The formats whose header can name an image below. */
const WITH_BACKING: readonly string[] = ['qcow2', 'qed', 'vmdk']

/** One image of a backing chain. */
export interface ChainImage {
  /** A URI where it is on a server. */
  readonly path: string
  /** Where it is on a server. */
  readonly network?: NetworkImage | undefined
  /** What opens it, where it is encrypted with LUKS. */
  readonly key?: Uint8Array | undefined
  readonly isBlockDevice: boolean
  readonly format: string
  /** Bytes of the disk that it shows, where it was asked. */
  readonly size?: number | undefined
  readonly bitmaps: readonly StoredBitmap[]
}

/** An image, and the format that it is to be read in. */
export interface NamedImage {
  readonly path: string
  readonly format: string
}

/**
 * The images that a disk is made of, top first, each asked by itself: formats
 * come from the caller and then from each header, and are never guessed,
 * because a guest that writes an image header into a raw disk could otherwise
 * have any file of the host read. Works on images in use, but the bitmaps are
 * then those of the last time they were closed.
 *
 * Rejects with E_IO where an image cannot be asked, E_UNSUPPORTED where a
 * header does not name the format of the image below, E_TOOL_MISSING,
 * E_UNREACHABLE.
 */
export async function readChain(
  tools: ImageTools,
  top: NamedImage,
  signal: AbortSignal,
): Promise<readonly ChainImage[]> {
  const chain: ChainImage[] = []
  let next: NamedImage | undefined = top
  while (next !== undefined) {
    if (chain.length === MAX_LAYERS) throw new BackupError('E_UNSUPPORTED', `${top.path} has too many images below it`)
    const said: ImageSays = await askImage(tools, next, signal)
    if (chain.length > 0 && said.isEncrypted) throw encryptedBelow(next.path)
    chain.push({
      path: next.path,
      format: next.format,
      isBlockDevice: await tools.isBlockDevice(next.path),
      size: said.size,
      bitmaps: said.bitmaps,
    })
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
  readonly size: number
  readonly isEncrypted: boolean
  readonly bitmaps: readonly StoredBitmap[]
  readonly below: NamedImage | undefined
}

async function askImage(tools: ImageTools, image: NamedImage, signal: AbortSignal): Promise<ImageSays> {
  const args = ['info', '-U', '-f', image.format, '--output=json', '--', image.path]
  const answer = decodeImageInfo(await tools.qemuImg(image.path, args, signal))
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
