import { BackupError } from '../base/errors.js'
import type { ImageFactory, ImageSpec, SideFile, SideFileSpec } from './image-factory.js'
import { ImageFile } from './image-file.js'
import type { ImageWriter } from './image-writer.js'
import { Qcow2Writer } from './qcow2.js'
import { RawWriter } from './raw.js'

/** The real images of this machine. */
export class LocalImages implements ImageFactory {
  async create(spec: ImageSpec, signal: AbortSignal): Promise<ImageWriter> {
    switch (spec.kind) {
      case 'qcow2':
        return await Qcow2Writer.create(spec, signal)
      case 'raw':
        return await RawWriter.create(spec, signal)
      case 'device':
      case 'export':
      case 'stream':
        throw new BackupError('E_UNSUPPORTED', `restoring to a ${spec.kind} is not supported`)
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
}
