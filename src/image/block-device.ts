import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'

import { throwIfAborted } from '../base/async.js'
import { BackupError, errorCodeOf } from '../base/errors.js'
import { invariant } from '../base/invariant.js'
import { native } from '../native/binding.js'
import { isErrno, named } from './image-file.js'
import type { ImageOutcome, ImagePiece, ImageWriter } from './image-writer.js'

/**
 * Partition tables, volume labels and most superblocks are here. It is kept
 * back until commit, so that a device with half a disk on it boots nothing and
 * mounts nowhere.
 */
const HEAD_BYTES = 1 << 20
const ZEROS = new Uint8Array(4 << 20)

export interface BlockDeviceOptions {
  readonly path: string
  /** Of the disk; the device may be larger, and keeps what lies beyond. */
  readonly size: number
  /** Overwrite a device that holds something at its start. */
  readonly force: boolean
}

/**
 * Writes a disk onto an existing block device.
 *
 * It is opened exclusively: what is mounted, or used by LVM, RAID or device
 * mapper is refused. Zeros are really zeros afterwards, discarded where the
 * device promises to read zeros then. Undo cannot bring back what was there;
 * an interrupted restore leaves the first MiB zeroed.
 */
export class BlockDeviceWriter implements ImageWriter {
  readonly name: string
  readonly size: number
  readonly startsZeroed = false
  readonly #head: Uint8Array
  #handle: FileHandle | undefined
  #zeroing: 'punch' | 'zero' | 'write' = 'punch'
  #dataBytes = 0
  #broken = false

  private constructor(options: BlockDeviceOptions, handle: FileHandle) {
    this.name = options.path
    this.size = options.size
    this.#handle = handle
    this.#head = new Uint8Array(Math.min(HEAD_BYTES, options.size))
  }

  /**
   * Opens the device and wipes its first MiB. Rejects with E_REFUSED (no block
   * device, in use, too small), E_EXISTS (holds something, `force` not given), E_IO.
   */
  static async create(options: BlockDeviceOptions, signal: AbortSignal): Promise<BlockDeviceWriter> {
    throwIfAborted(signal)
    const handle = await openExclusively(options.path)
    try {
      await checkDevice(handle, options)
      const device = new BlockDeviceWriter(options, handle)
      await device.#put(device.#head, 0)
      await handle.datasync()
      return device
    } catch (error) {
      await handle.close()
      throw named(options.path, error)
    }
  }

  get #device(): FileHandle {
    invariant(this.#handle !== undefined, 'block device used after commit or dispose')
    return this.#handle
  }

  async write(pieces: readonly ImagePiece[], bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    let start = 0
    try {
      for (const { offset, length } of pieces) {
        throwIfAborted(signal)
        this.#checkRange(offset, length)
        invariant(length <= bytes.length - start, 'image pieces hold more than the bytes given')
        const inHead = Math.max(0, Math.min(length, this.#head.length - offset))
        this.#head.set(bytes.subarray(start, start + inHead), Math.min(offset, this.#head.length))
        await this.#put(bytes.subarray(start + inHead, start + length), offset + inHead)
        start += length
      }
      this.#dataBytes += start
    } catch (error) {
      this.#broken = true
      throw error
    }
  }

  async zero(offset: number, length: number, signal: AbortSignal): Promise<void> {
    this.#checkRange(offset, length)
    const from = Math.max(offset, this.#head.length)
    try {
      if (from < offset + length) await this.#zero(from, offset + length - from, signal)
    } catch (error) {
      this.#broken = true
      throw error
    }
  }

  markDamaged(): Promise<void> {
    return Promise.resolve()
  }

  async commit(signal: AbortSignal): Promise<ImageOutcome> {
    invariant(!this.#broken, 'a block device is committed after a failed write')
    throwIfAborted(signal)
    const device = this.#device
    try {
      // What makes it a disk comes last, on top of what is already durable.
      await device.datasync()
      await this.#put(this.#head, 0)
      await device.datasync()
      this.#handle = undefined
      await device.close()
    } catch (error) {
      throw named(this.name, error)
    }
    return { dataBytes: this.#dataBytes, fileBytes: this.size }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const device = this.#handle
    this.#handle = undefined
    await device?.close()
  }

  #checkRange(offset: number, length: number): void {
    invariant(offset <= this.size && length <= this.size - offset, 'a piece lies beyond the disk')
  }

  async #put(bytes: Uint8Array, position: number): Promise<void> {
    let done = 0
    while (done < bytes.length) {
      const { bytesWritten } = await this.#device
        .write(bytes, done, bytes.length - done, position + done)
        .catch((error: unknown) => {
          throw named(this.name, error)
        })
      if (bytesWritten === 0) throw new BackupError('E_IO', `${this.name}: the device takes no more bytes`)
      done += bytesWritten
    }
  }

  /** The best way that the device has, found out once: discard that reads as zeros, write zeroes, plain writes. */
  async #zero(offset: number, length: number, signal: AbortSignal): Promise<void> {
    while (this.#zeroing !== 'write') {
      throwIfAborted(signal)
      try {
        await native().fallocate(this.#device.fd, this.#zeroing, offset, length)
        return
      } catch (error) {
        if (errorCodeOf(error) !== 'E_UNSUPPORTED') throw named(this.name, error)
        if (offset % 4096 !== 0 || length % 4096 !== 0) break
        this.#zeroing = this.#zeroing === 'punch' ? 'zero' : 'write'
      }
    }
    for (let done = 0; done < length; done += ZEROS.length) {
      throwIfAborted(signal)
      await this.#put(ZEROS.subarray(0, Math.min(ZEROS.length, length - done)), offset + done)
    }
  }
}

async function openExclusively(path: string): Promise<FileHandle> {
  try {
    // Without O_CREAT, O_EXCL on a block device means: nobody else has it in use.
    return await open(path, constants.O_RDWR | constants.O_EXCL)
  } catch (error) {
    if (!isErrno(error, 'EBUSY')) throw named(path, error)
    throw new BackupError('E_REFUSED', `${path} is in use`, {
      why: 'It is mounted, or part of a volume group, a RAID or a mapped device.',
      hints: [`See by what: lsblk ${path}`],
      cause: error,
    })
  }
}

async function checkDevice(handle: FileHandle, { path, size, force }: BlockDeviceOptions): Promise<void> {
  const stat = await handle.stat()
  if (!stat.isBlockDevice()) {
    throw new BackupError('E_REFUSED', `${path} is no block device`, {
      hints: ['To restore to a file, name its directory with --to.'],
    })
  }
  const room = native().blockDeviceSize(handle.fd)
  if (room < size) {
    throw new BackupError('E_REFUSED', `${path} has ${room} bytes where the disk needs ${size}`)
  }
  if (force) return
  const start = new Uint8Array(Math.min(HEAD_BYTES, room))
  const { bytesRead } = await handle.read(start, 0, start.length, 0)
  if (start.subarray(0, bytesRead).some(byte => byte !== 0)) {
    throw new BackupError('E_EXISTS', `${path} holds something`, {
      hints: [`See what: blkid ${path}`, 'Overwrite it with --force.'],
    })
  }
}
