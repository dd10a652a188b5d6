import { BackupError, errorCodeOf, messageOf } from '../base/errors.js'
import {
  CLIENT_FLAGS_BYTES,
  decodeClientFlags,
  decodeExportName,
  decodeExportRequest,
  decodeMetaQuery,
  decodeOptionHeader,
  encodeBlockSizes,
  encodeExportInfo,
  encodeExportNameReply,
  encodeGreeting,
  encodeMetaContext,
  encodeOptionReply,
  encodeServerName,
  encodeTextInfo,
  NBD_INFO,
  NBD_OPT,
  NBD_REP,
  OPTION_HEADER_BYTES,
} from '../format/nbd-options.js'
import { NBD_FLAG } from '../format/nbd-wire.js'
import { type ExportCatalog, MAX_REQUEST_BYTES, type OpenExport, type ServedExport } from './served-export.js'
import type { WireSocket } from './wire-socket.js'

/** Longer options are refused, much longer ones end the connection. */
const MAX_OPTION_BYTES = 64 * 1024
const MAX_DISCARDED_BYTES = 1024 * 1024
const ALLOCATION = 'base:allocation'
export const ALLOCATION_ID = 1

/** What the two sides agreed on. */
export interface Agreement {
  readonly socket: WireSocket
  readonly served: ServedExport
  /** Disposing it is the business of whoever serves it. */
  readonly opened: AsyncDisposable
  readonly structured: boolean
  /** Whether block status of `base:allocation` may be asked for. */
  readonly allocation: boolean
}

export interface NegotiationOptions {
  readonly catalog: ExportCatalog
  /** Continues encrypted. Without it TLS is not offered; with it nothing is said before TLS. */
  readonly startTls?: ((socket: WireSocket) => Promise<WireSocket>) | undefined
}

/** Talks until the client has chosen an export; undefined where it goes before. Rejects with E_NBD_PROTOCOL. */
export async function negotiate(socket: WireSocket, options: NegotiationOptions): Promise<Agreement | undefined> {
  await socket.send(encodeGreeting())
  const flags = await socket.read(CLIENT_FLAGS_BYTES)
  if (flags === undefined) return undefined
  return await new Negotiation(socket, options, decodeClientFlags(flags).noZeroes).run()
}

/** 'continue' waits for the next option, 'end' is a client that has heard enough. */
type Outcome = 'continue' | 'end' | Agreement

class Negotiation {
  #socket: WireSocket
  readonly #options: NegotiationOptions
  readonly #noZeroes: boolean
  #isEncrypted = false
  #structured = false
  /** Name of the export that `base:allocation` was agreed on for. */
  #allocationOf: string | undefined

  constructor(socket: WireSocket, options: NegotiationOptions, noZeroes: boolean) {
    this.#socket = socket
    this.#options = options
    this.#noZeroes = noZeroes
  }

  async run(): Promise<Agreement | undefined> {
    for (;;) {
      const header = await this.#socket.read(OPTION_HEADER_BYTES)
      if (header === undefined) return undefined
      const { option, length } = decodeOptionHeader(header)
      if (length > MAX_DISCARDED_BYTES) throw new BackupError('E_NBD_PROTOCOL', 'the client sent an endless option')
      if (length > MAX_OPTION_BYTES) {
        if (!(await this.#socket.discard(length))) return undefined
        await this.#reply(option, NBD_REP.tooBig)
        continue
      }
      const data = await this.#socket.read(length)
      if (data === undefined) return undefined
      const outcome = await this.#answer(option, data)
      if (outcome === 'end') return undefined
      if (outcome !== 'continue') return outcome
    }
  }

  async #answer(option: number, data: Uint8Array): Promise<Outcome> {
    const mustEncrypt = this.#options.startTls !== undefined && !this.#isEncrypted
    if (mustEncrypt && option !== NBD_OPT.startTls && option !== NBD_OPT.abort) {
      if (option === NBD_OPT.exportName) return 'end'
      return await this.#reply(option, NBD_REP.tlsRequired, 'this server speaks TLS only')
    }
    try {
      return await this.#dispatch(option, data)
    } catch (error) {
      // The option was read to its end: the next one is where it should be.
      if (errorCodeOf(error) !== 'E_NBD_PROTOCOL' || option === NBD_OPT.exportName) throw error
      return await this.#reply(option, NBD_REP.invalid, messageOf(error))
    }
  }

  async #dispatch(option: number, data: Uint8Array): Promise<Outcome> {
    switch (option) {
      case NBD_OPT.abort:
        await this.#reply(option, NBD_REP.ack)
        return 'end'
      case NBD_OPT.list:
        return await this.#list(data)
      case NBD_OPT.startTls:
        return await this.#startTls(data)
      case NBD_OPT.structuredReply:
        mustBeEmpty(data)
        this.#structured = true
        return await this.#reply(option, NBD_REP.ack)
      case NBD_OPT.listMetaContext:
      case NBD_OPT.setMetaContext:
        return await this.#metaContext(option, data)
      case NBD_OPT.info:
      case NBD_OPT.go:
        return await this.#info(option, data)
      case NBD_OPT.exportName:
        return await this.#exportName(data)
      default:
        return await this.#reply(option, NBD_REP.unsupported)
    }
  }

  async #list(data: Uint8Array): Promise<Outcome> {
    mustBeEmpty(data)
    for await (const name of this.#options.catalog.names()) {
      await this.#socket.send(encodeOptionReply(NBD_OPT.list, NBD_REP.server, encodeServerName(name)))
    }
    return await this.#reply(NBD_OPT.list, NBD_REP.ack)
  }

  async #startTls(data: Uint8Array): Promise<Outcome> {
    mustBeEmpty(data)
    const { startTls } = this.#options
    if (startTls === undefined) return await this.#reply(NBD_OPT.startTls, NBD_REP.policy, 'TLS is not set up')
    if (this.#isEncrypted) return await this.#reply(NBD_OPT.startTls, NBD_REP.invalid, 'this is TLS already')
    await this.#reply(NBD_OPT.startTls, NBD_REP.ack)
    // What came in the clear must not be taken for what comes encrypted.
    if (this.#socket.unread > 0) throw new BackupError('E_NBD_PROTOCOL', 'the client spoke before TLS had begun')
    this.#socket = await startTls(this.#socket)
    this.#isEncrypted = true
    this.#structured = false
    this.#allocationOf = undefined
    return 'continue'
  }

  async #metaContext(option: number, data: Uint8Array): Promise<Outcome> {
    const { name, queries } = decodeMetaQuery(data)
    if (!this.#structured) return await this.#reply(option, NBD_REP.invalid, 'structured replies come first')
    if (option === NBD_OPT.setMetaContext) this.#allocationOf = undefined
    await using opened = await this.#options.catalog.open(name)
    if (opened === undefined) return await this.#reply(option, NBD_REP.unknown, unknownExport(name))
    const isListing = option === NBD_OPT.listMetaContext
    const isWanted = queries.includes(ALLOCATION) || (isListing && (queries.length === 0 || queries.includes('base:')))
    if (isWanted) {
      if (!isListing) this.#allocationOf = name
      const context = encodeMetaContext(isListing ? 0 : ALLOCATION_ID, ALLOCATION)
      await this.#socket.send(encodeOptionReply(option, NBD_REP.metaContext, context))
    }
    return await this.#reply(option, NBD_REP.ack)
  }

  async #info(option: number, data: Uint8Array): Promise<Outcome> {
    const { name, infos } = decodeExportRequest(data)
    return await this.#opening(name, async opened => {
      if (opened === undefined) return await this.#reply(option, NBD_REP.unknown, unknownExport(name))
      const { served } = opened
      const replies = [
        encodeExportInfo(served.disk.size, this.#flags()),
        encodeBlockSizes({ minimum: 1, preferred: served.preferredBlock, maximum: MAX_REQUEST_BYTES }),
      ]
      if (infos.includes(NBD_INFO.name)) replies.push(encodeTextInfo(NBD_INFO.name, served.name))
      if (infos.includes(NBD_INFO.description)) replies.push(encodeTextInfo(NBD_INFO.description, served.description))
      for (const reply of replies) await this.#socket.send(encodeOptionReply(option, NBD_REP.info, reply))
      await this.#reply(option, NBD_REP.ack)
      return option === NBD_OPT.go ? this.#agree(opened, name) : 'continue'
    })
  }

  async #exportName(data: Uint8Array): Promise<Outcome> {
    const name = decodeExportName(data)
    return await this.#opening(name, async opened => {
      // The old option has no way to say no.
      if (opened === undefined) return 'end'
      const { size } = opened.served.disk
      await this.#socket.send(encodeExportNameReply({ size, flags: this.#flags() }, this.#noZeroes))
      return this.#agree(opened, name)
    })
  }

  /** What is opened stays open where it was agreed on, and only there. */
  async #opening(name: string, use: (opened: OpenExport | undefined) => Promise<Outcome>): Promise<Outcome> {
    const opened = await this.#options.catalog.open(name)
    let outcome: Outcome = 'end'
    try {
      outcome = await use(opened)
      return outcome
    } finally {
      if (outcome === 'continue' || outcome === 'end') await opened?.[Symbol.asyncDispose]()
    }
  }

  #agree(opened: OpenExport, name: string): Agreement {
    const { served } = opened
    return {
      socket: this.#socket,
      served,
      opened,
      structured: this.#structured,
      allocation: this.#allocationOf === name,
    }
  }

  #flags(): number {
    const always = NBD_FLAG.hasFlags | NBD_FLAG.readOnly | NBD_FLAG.canMultiConnect
    return this.#structured ? always | NBD_FLAG.sendDontFragment : always
  }

  async #reply(option: number, type: number, text = ''): Promise<'continue'> {
    await this.#socket.send(encodeOptionReply(option, type, Buffer.from(text)))
    return 'continue'
  }
}

function mustBeEmpty(data: Uint8Array): void {
  if (data.length > 0) throw new BackupError('E_NBD_PROTOCOL', 'the client sent data with an option that has none')
}

function unknownExport(name: string): string {
  return name === '' ? 'this server has several exports: name one' : 'this server has no such export'
}
