import { run } from './run-program.js'

export interface ImageInfo {
  readonly format: string
  readonly size: number
  /** 0 for raw. */
  readonly clusterSize: number
  readonly bitmaps: readonly { readonly name: string; readonly flags: readonly string[] }[]
}

/** What qemu-img says of an image, also while a domain uses it. */
export async function imageInfo(path: string, format?: string): Promise<ImageInfo> {
  const as = format === undefined ? [] : ['-f', format]
  const { stdout } = await run('qemu-img', ['info', '-U', ...as, '--output=json', path])
  const info = JSON.parse(stdout) as {
    format: string
    'virtual-size': number
    'cluster-size'?: number
    'format-specific'?: { data?: { bitmaps?: { name: string; flags: string[] }[] } }
  }
  return {
    format: info.format,
    size: info['virtual-size'],
    clusterSize: info['cluster-size'] ?? 0,
    bitmaps: info['format-specific']?.data?.bitmaps ?? [],
  }
}

const LUKS_TRIES = 200

/**
 * Makes an encrypted image. QEMU counts iterations by the CPU time that a few
 * of them take, and gives up where the clock of a virtual machine shows none:
 * at the next try it may.
 */
export async function createEncryptedImage(args: readonly string[]): Promise<void> {
  for (let tries = 1; ; tries++) {
    const { code, stderr } = await run('qemu-img', ['create', '-q', ...args], { check: false })
    if (code === 0) return
    if (tries >= LUKS_TRIES || !stderr.includes('accurate CPU usage')) throw new Error(stderr)
  }
}

export interface ImagePath {
  readonly path: string
  readonly format: string
}

/**
 * How the contents of two images differ, or undefined where each byte is the
 * same. Another size is a difference, another allocation is none.
 */
export async function imageDifference(a: ImagePath, b: ImagePath): Promise<string | undefined> {
  const [sizeA, sizeB] = [(await imageInfo(a.path, a.format)).size, (await imageInfo(b.path, b.format)).size]
  if (sizeA !== sizeB) return `${a.path} has ${sizeA} bytes, ${b.path} has ${sizeB}`
  const args = ['compare', '-U', '-f', a.format, '-F', b.format, a.path, b.path]
  const { code, stdout, stderr } = await run('qemu-img', args, { check: false })
  if (code === 0) return undefined
  if (code === 1) return stdout.trim()
  throw new Error(`qemu-img ${args.join(' ')}: ${stderr}`)
}

/** What qemu-img check finds wrong with a qcow2 image, or undefined. Leaks count. */
export async function imageDamage(path: string): Promise<string | undefined> {
  const { code, stdout, stderr } = await run('qemu-img', ['check', '-U', '-f', 'qcow2', path], { check: false })
  return code === 0 ? undefined : `${stdout}${stderr}`.trim()
}
