/** One NBD connection with its own thread (libnbd, no other thread ever touches its handle). */
export interface NbdBinding {
  /**
   * Connects and negotiates; rejects with E_NBD (cannot connect, refused),
   * E_NBD_PROTOCOL (hostile or useless answers: negative size, missing meta
   * context) or E_TIMEOUT.
   */
  nbdConnect(options: NbdConnectOptions): Promise<NativeNbdConnection>
  /** Names of the exports a server offers, with their sizes and meta contexts where it says. */
  nbdList(options: NbdAddress): Promise<NbdListedExport[]>
}

export interface NbdAddress {
  /** Exactly one of socket, host + port, uri, command. */
  readonly socket?: string | undefined
  readonly host?: string | undefined
  readonly port?: number | undefined
  readonly uri?: string | undefined
  /** A program that speaks NBD on its standard input and output. */
  readonly command?: readonly string[] | undefined
  readonly tls?: NbdTls | undefined
  readonly connectTimeoutMs?: number | undefined
}

/** With `verifyPeer`, certificates or keys must be given (E_CONFIG): without any, libnbd 1.14 believes every server. */
export interface NbdTls {
  /** Directory with ca-cert.pem, client-cert.pem, client-key.pem. */
  readonly certificates?: string | undefined
  readonly pskFile?: string | undefined
  readonly username?: string | undefined
  readonly verifyPeer: boolean
}

export interface NbdConnectOptions extends NbdAddress {
  readonly exportName: string
  /** All must be granted, or the connection is refused. */
  readonly metaContexts: readonly string[]
  /** Asked for too, but the connection does without; see `contexts`. */
  readonly optionalContexts?: readonly string[] | undefined
  /** When requests wait and none is answered for this long, they fail with E_TIMEOUT and the connection is dead. */
  readonly requestTimeoutMs: number
  readonly writable?: boolean | undefined
}

export interface NbdListedExport {
  readonly name: string
  readonly description: string
  readonly size: number | undefined
}

export interface NativeNbdConnection {
  readonly size: number
  readonly canMultiConn: boolean
  readonly isReadOnly: boolean
  readonly canZero: boolean
  readonly canTrim: boolean
  readonly canFlush: boolean
  readonly minimumBlock: number
  readonly preferredBlock: number
  readonly maximumBlock: number
  /** Meta contexts granted: all of metaContexts, then those of optionalContexts that the server has. */
  readonly contexts: readonly string[]

  /**
   * Extents of one context in [offset, offset + length), as pairs
   * (length, flags) that start at `offset` and advance strictly; they may cover
   * less than asked, never nothing, and never end past the range asked for.
   * One answer holds every context of `contexts`, in that order. Rejects with
   * E_UNSUPPORTED where there is none, and else as read(). A range larger than 4 GiB - 64 KiB is
   * answered for that much at most.
   */
  blockStatus(offset: number, length: number): Promise<Float64Array[]>

  /**
   * Reads pieces into `buffer`: triples (offset in the export, length, offset
   * in `buffer`), split into requests of at most `maxRequest` bytes with at
   * most `depth` in flight. Adjacent pieces should be merged by the caller.
   * Several read() calls may be under way; they share the connection in order.
   * Rejects with E_NBD_READ naming the first failed offset where the server
   * answers with an error (`errno` has it, the connection lives on); what was
   * asked for has been drained by then. E_NBD, E_NBD_PROTOCOL, E_TIMEOUT and
   * E_INTERRUPTED mean that the connection is over.
   * `maxRequest` is 1 to 32 MiB, `depth` 1 to 256; ranges that split the
   * minimum block are widened on the wire.
   */
  read(pieces: Float64Array, buffer: Uint8Array, maxRequest: number, depth: number): Promise<void>

  /**
   * As read(), the other way; restore to an NBD export. Rejects with E_NBD
   * (E_NO_SPACE where the image is full), also for a range that splits the
   * minimum block.
   */
  write(pieces: Float64Array, buffer: Uint8Array, maxRequest: number, depth: number): Promise<void>
  /** Zeroes [offset, offset + length); `punch` allows holes. */
  zero(offset: number, length: number, punch: boolean): Promise<void>
  /** Makes durable the writes whose promises have settled; not those under way. */
  flush(): Promise<void>

  /** Drains, disconnects, joins the thread. Idempotent; never rejects. */
  close(): Promise<void>
  /** Drops the socket at once; what is under way rejects with E_INTERRUPTED. Then close(). */
  abort(): void
}
