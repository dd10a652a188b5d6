import type { ImageFileOptions, ImageWriter } from './image-writer.js'
import type { Qcow2Options } from './qcow2.js'

/** Which image to make; sizes in bytes. */
export type ImageSpec =
  | ({ readonly kind: 'qcow2' } & Qcow2Options)
  | ({ readonly kind: 'raw' } & ImageFileOptions)
  /** An existing block device; `force` is needed where it holds something already. */
  | { readonly kind: 'device'; readonly path: string; readonly size: number; readonly force: boolean }
  /** An NBD export that allows writing. */
  | { readonly kind: 'export'; readonly uri: string; readonly size: number }
  /** Raw bytes on standard output. */
  | { readonly kind: 'stream'; readonly size: number }

/** Opens where a disk is restored to; jobs take one so that they need not know how. */
export interface ImageFactory {
  /** Rejects with E_EXISTS, E_REFUSED, E_UNSUPPORTED, E_NO_SPACE, E_IO, E_NBD; then nothing is left behind. */
  create(spec: ImageSpec, signal: AbortSignal): Promise<ImageWriter>
  /** A small file beside the images (domain XML, NVRAM), written under a temporary name until its commit(). */
  createFile(file: SideFileSpec): Promise<SideFile>
}

export interface SideFileSpec {
  readonly path: string
  readonly bytes: Uint8Array
  readonly force?: boolean | undefined
}

/** Leaving its scope without commit() removes it. */
export interface SideFile extends AsyncDisposable {
  readonly path: string
  commit(): Promise<void>
}
