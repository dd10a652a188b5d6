/** `[offset, offset + length)` of a disk: bytes to read, or zeros that are allocated or not. */
export interface ServedExtent {
  readonly offset: number
  readonly length: number
  readonly kind: 'data' | 'zero' | 'hole'
}

/**
 * A disk as the NBD server sees it. Both calls may be under way any number of
 * times at once; whoever implements it bounds its memory.
 */
export interface ReadableDisk {
  readonly size: number
  /** All of `[from, to)`, ascending, without gaps, clipped to it. Rejects with E_DAMAGED. */
  extents(from: number, to: number, signal: AbortSignal): AsyncIterable<ServedExtent>
  /** Fills `out` from `offset` on. `out` is borrowed until it settles. Rejects with E_DAMAGED. */
  read(offset: number, out: Uint8Array, signal: AbortSignal): Promise<void>
}

export interface ServedExport {
  readonly name: string
  readonly description: string
  readonly disk: ReadableDisk
  /** A power of two: the size of reads that costs least. */
  readonly preferredBlock: number
}

/** An export that a client uses: it stays readable until this is disposed. */
export interface OpenExport extends AsyncDisposable {
  readonly served: ServedExport
}

/** What a server offers, where that is too much to hold open. */
export interface ExportCatalog {
  /** Names of all exports, for clients that ask for the list. */
  names(): AsyncIterable<string>
  /** The export of this name, which names() need not have told; undefined where there is none. */
  open(name: string): Promise<OpenExport | undefined>
}

/** A catalog of exports that are open all the time. The empty name is the only export there is. */
export function fixedCatalog(exports: readonly ServedExport[]): ExportCatalog {
  return {
    // eslint-disable-next-line @typescript-eslint/require-await
    async *names() {
      for (const { name } of exports) yield name
    },
    open: name => {
      const served = name === '' && exports.length === 1 ? exports[0] : exports.find(each => each.name === name)
      return Promise.resolve(
        served === undefined ? undefined : { served, [Symbol.asyncDispose]: () => Promise.resolve() },
      )
    },
  }
}

/** The longest read that is answered, as told to clients. */
export const MAX_REQUEST_BYTES = 32 * 1024 * 1024
