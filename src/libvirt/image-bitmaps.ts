import { systemClock } from '../base/clock.js'
import { errorCodeOf, messageOf } from '../base/errors.js'
import type { ChainImage } from './image-chain.js'
import { type ImageTools, inUse } from './image-tools.js'

const LINGER_POLL_MS = 200

/** Changes the dirty bitmaps of images that nobody has open. */

/** Adds a bitmap that records from now on. Rejects with E_DOMAIN_BUSY where the image is in use, E_IO. */
export async function addBitmap(tools: ImageTools, image: ChainImage, name: string): Promise<void> {
  if (image.key !== undefined) {
    await editEncrypted(tools, image, { key: image.key, command: 'block-dirty-bitmap-add', name, persistent: true })
    return
  }
  await tools.qemuImg(image.path, ['bitmap', '--add', '-f', image.format, '--', image.path, name])
}

/**
 * Waits a moment where a daemon of ours that was cut off may still have it.
 * Rejects with E_DOMAIN_BUSY where the image is in use, E_IO where there is no
 * such bitmap.
 */
export async function removeBitmap(tools: ImageTools, image: ChainImage, name: string): Promise<void> {
  const deadline = systemClock.monotonic() + tools.lingerMs
  for (;;) {
    try {
      await removeNow(tools, image, name)
      return
    } catch (error) {
      if (errorCodeOf(error) !== 'E_DOMAIN_BUSY' || systemClock.monotonic() >= deadline) throw error
      await systemClock.sleep(LINGER_POLL_MS)
    }
  }
}

async function removeNow(tools: ImageTools, image: ChainImage, name: string): Promise<void> {
  if (image.key !== undefined) {
    await editEncrypted(tools, image, { key: image.key, command: 'block-dirty-bitmap-remove', name })
    return
  }
  await tools.qemuImg(image.path, ['bitmap', '--remove', '-f', image.format, '--', image.path, name])
}

interface BitmapEdit {
  readonly key: Uint8Array
  readonly command: 'block-dirty-bitmap-add' | 'block-dirty-bitmap-remove'
  readonly name: string
  readonly persistent?: boolean
}

/** qemu-img takes a key from its arguments or a file, where others could read it; the daemon from its standard input. */
async function editEncrypted(
  tools: ImageTools,
  image: ChainImage,
  { key, command, ...what }: BitmapEdit,
): Promise<void> {
  await using daemon = await tools.startDaemon()
  const data = Buffer.from(key).toString('base64')
  try {
    await daemon.execute('object-add', { 'qom-type': 'secret', id: 'key', data, format: 'base64' })
    await daemon.execute('blockdev-add', {
      driver: image.format,
      'node-name': 'image',
      encrypt: { format: 'luks', 'key-secret': 'key' },
      file: { driver: image.isBlockDevice ? 'host_device' : 'file', filename: image.path },
      backing: null,
    })
    await daemon.execute(command, { node: 'image', ...what })
    // Closes the image, which is when it stores its bitmaps.
    await daemon.execute('blockdev-del', { 'node-name': 'image' })
  } catch (error) {
    throw inUse(image.path, messageOf(error), error) ?? error
  }
}
