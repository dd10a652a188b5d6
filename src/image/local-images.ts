import type { Writable } from 'node:stream'

import { BlockDeviceWriter } from './block-device.js'
import { ExportImage, type WritableExport } from './export-image.js'
import { CompressedQcow2Writer } from './compressed-qcow2.js'
import type { ImageFactory, ImageSpec, SideFile, SideFileSpec } from './image-factory.js'
import { ImageFile } from './image-file.js'
import type { ImageWriter } from './image-writer.js'
import { checkQcow2, Qcow2Writer } from './qcow2.js'
import { RawWriter } from './raw.js'
import { StreamImage } from './stream-image.js'

/** What images need from elsewhere. */
export interface ImageParts {
  /** Where a disk that is restored to standard output goes. */
  readonly output: Writable
  openExport(uri: string, signal: AbortSignal): Promise<WritableExport>
}

/** The real images of this machine. */
export class LocalImages implements ImageFactory {
  readonly #parts: ImageParts

  constructor(parts: ImageParts) {
    this.#parts = parts
  }

  /** Throws E_UNSUPPORTED for an image that cannot be, before anything is touched. */
  check(spec: ImageSpec): void {
    if (spec.kind === 'qcow2') checkQcow2(spec)
  }

  async create(spec: ImageSpec, signal: AbortSignal): Promise<ImageWriter> {
    switch (spec.kind) {
      case 'qcow2':
        return (spec.compression ?? 'none') === 'none'
          ? await Qcow2Writer.create(spec, signal)
          : await CompressedQcow2Writer.create(spec)
      case 'raw':
        return await RawWriter.create(spec, signal)
      case 'device':
        return await BlockDeviceWriter.create(spec, signal)
      case 'export':
        return await this.#openExport(spec.uri, spec.size, signal)
      case 'stream':
        return new StreamImage(this.#parts.output, spec.size)
    }
  }

  async createFile(spec: SideFileSpec): Promise<SideFile> {
    const file = await ImageFile.create({ path: spec.path, size: spec.bytes.length, force: spec.force })
    try {
      await file.write(spec.bytes, 0)
    } catch (error) {
      await file[Symbol.asyncDispose]()
      throw error
    }
    return {
      path: spec.path,
      commit: async () => {
        await file.commit()
      },
      [Symbol.asyncDispose]: () => file[Symbol.asyncDispose](),
    }
  }

  async #openExport(uri: string, size: number, signal: AbortSignal): Promise<ImageWriter> {
    const target = await this.#parts.openExport(uri, signal)
    try {
      return new ExportImage(uri, size, target)
    } catch (error) {
      await target[Symbol.asyncDispose]()
      throw error
    }
  }
}
