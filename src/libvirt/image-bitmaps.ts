import { messageOf } from '../base/errors.js'
import { type ChainImage, inUse, qemuImg } from './image-chain.js'
import { StorageDaemon } from './storage-daemon.js'

/** Changes the dirty bitmaps of images that nobody has open. */

/** Adds a bitmap that records from now on. Rejects with E_DOMAIN_BUSY where the image is in use, E_IO. */
export async function addBitmap(image: ChainImage, name: string): Promise<void> {
  if (image.key !== undefined) {
    await editEncrypted(image, image.key, { command: 'block-dirty-bitmap-add', name, persistent: true })
    return
  }
  await qemuImg(image.path, ['bitmap', '--add', '-f', image.format, '--', image.path, name])
}

/** Rejects with E_DOMAIN_BUSY where the image is in use, E_IO where there is no such bitmap. */
export async function removeBitmap(image: ChainImage, name: string): Promise<void> {
  if (image.key !== undefined) {
    await editEncrypted(image, image.key, { command: 'block-dirty-bitmap-remove', name })
    return
  }
  await qemuImg(image.path, ['bitmap', '--remove', '-f', image.format, '--', image.path, name])
}

interface BitmapEdit {
  readonly command: 'block-dirty-bitmap-add' | 'block-dirty-bitmap-remove'
  readonly name: string
  readonly persistent?: boolean
}

/** qemu-img takes a key from its arguments or a file, where others could read it; the daemon from its standard input. */
async function editEncrypted(image: ChainImage, key: Uint8Array, { command, ...what }: BitmapEdit): Promise<void> {
  await using daemon = await StorageDaemon.start()
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
