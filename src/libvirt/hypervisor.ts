import { systemClock, type Clock } from '../base/clock.js'
import { throwIfAborted } from '../base/async.js'
import { BackupError, isNativeFailure, messageOf, type NativeFailure } from '../base/errors.js'
import type { DomainDescription } from '../model/domain.js'
import { native } from '../native/binding.js'
import type { NativeVirtConnection, VirtDomainInfo, VirtEvent } from '../native/virt.js'
import { parseDomainXml } from './domain-xml.js'
import { EventQueue } from './event-queue.js'
import { refuseOtherDrivers } from './drivers.js'
import { type HostFiles, LOCAL_FILES } from './host-files.js'

export interface HypervisorOptions {
  readonly username?: string | undefined
  readonly passphrase?: string | undefined
  readonly clock?: Clock | undefined
  /** Of the machine that libvirt runs on; default: this one's. */
  readonly files?: HostFiles | undefined
}

export interface DomainXml {
  /** The definition that outlives a stop; of a transient domain, what it was started from. */
  readonly inactive: string
  /** undefined where it does not run. */
  readonly live: string | undefined
}

/** VIR_ERR_AUTH_FAILED. */
const AUTH_FAILED = 45
/** libvirt 6.10: checkpoints are redefined with validation. LIBVIRT.md §13. */
const MIN_DAEMON_VERSION = 6_010_000

/**
 * A libvirt daemon that drives QEMU. Owns its connections; disposing closes
 * them. A lost connection ends no backup: QEMU goes on serving, and calls made
 * through call() reconnect.
 */
export class Hypervisor implements AsyncDisposable {
  readonly uri: string
  readonly clock: Clock
  readonly files: HostFiles
  readonly #options: HypervisorOptions
  readonly #queues = new Set<EventQueue>()
  #connection: NativeVirtConnection
  #reconnecting: Promise<void> | undefined
  #closed = false

  private constructor(uri: string, options: HypervisorOptions, first: Connecting) {
    this.uri = uri
    this.clock = options.clock ?? systemClock
    this.files = options.files ?? LOCAL_FILES
    this.#options = options
    this.#connection = first.connection
    first.listener = event => this.#publish(event)
  }

  /**
   * Connects. Rejects with E_LIBVIRT_CONNECT, E_LIBVIRT_DENIED, or
   * E_UNSUPPORTED where the other side is not QEMU or too old; where the URI
   * says so already, without connecting.
   */
  static async open(uri: string, options: HypervisorOptions, signal: AbortSignal): Promise<Hypervisor> {
    throwIfAborted(signal)
    refuseOtherDrivers(uri)
    const connecting = await connect(uri, options)
    try {
      await requireQemu(uri, connecting.connection)
      throwIfAborted(signal)
    } catch (error) {
      await connecting.connection.close()
      throw error
    }
    return new Hypervisor(uri, options, connecting)
  }

  /** The present connection; one that was lost rejects calls with E_LIBVIRT_CONNECT until reconnect(). */
  get connection(): NativeVirtConnection {
    return this.#connection
  }

  /**
   * Makes a call, and once more over a new connection where the old one was
   * lost. Only for what may be done twice.
   */
  async call<T>(run: (connection: NativeVirtConnection) => Promise<T>): Promise<T> {
    const used = this.#connection
    try {
      return await run(used)
    } catch (error) {
      if (!isConnectionLoss(error) || this.#closed) throw error
      // Somebody else may have reconnected meanwhile.
      if (used === this.#connection) await this.reconnect()
      return run(this.#connection)
    }
  }

  /** Replaces the connection; events go on over the new one. Several callers share one attempt. */
  async reconnect(): Promise<void> {
    this.#reconnecting ??= this.#reconnect().finally(() => (this.#reconnecting = undefined))
    await this.#reconnecting
  }

  async listDomains(): Promise<readonly VirtDomainInfo[]> {
    return this.call(connection => connection.listDomains())
  }

  /** By name or UUID. Rejects with E_NOT_FOUND. */
  async lookup(nameOrUuid: string): Promise<VirtDomainInfo> {
    try {
      return await this.call(connection => connection.lookupDomain(nameOrUuid))
    } catch (error) {
      if (!isNativeFailure(error) || error.code !== 'E_NOT_FOUND') throw error
      throw new BackupError('E_NOT_FOUND', `${this.uri} has no domain ${nameOrUuid}`, {
        hints: [`see what it has:   virsh -c ${this.uri} list --all`],
        cause: error,
      })
    }
  }

  /** Both definitions, with their secrets, as libvirt has them: what a restore needs. */
  async domainXml(uuid: string): Promise<DomainXml> {
    const inactive = await this.call(connection => connection.domainXml(uuid, { inactive: true, secure: true }))
    const info = await this.lookup(uuid)
    if (info.id < 0) return { inactive, live: undefined }
    return { inactive, live: await this.call(connection => connection.domainXml(uuid, { secure: true })) }
  }

  /** As it runs; as it is defined where it does not run. */
  async describe(uuid: string): Promise<DomainDescription> {
    return parseDomainXml(await this.call(connection => connection.domainXml(uuid, {})))
  }

  /**
   * What happens to domains from now on, until `signal` aborts or the
   * hypervisor is disposed of. `closed` says that events may have been missed
   * and that someone must reconnect. A consumer that falls behind loses the
   * oldest events: act on them as hints, and look at the domain itself.
   */
  events(signal: AbortSignal): AsyncIterable<VirtEvent> {
    const queue = new EventQueue(signal, () => this.#queues.delete(queue))
    if (this.#closed) queue.end()
    else this.#queues.add(queue)
    return queue
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true
    for (const queue of [...this.#queues]) queue.end()
    await this.#reconnecting?.catch(() => undefined)
    await this.#connection.close()
  }

  async #reconnect(): Promise<void> {
    const old = this.#connection
    const connecting = await connect(this.uri, this.#options)
    this.#connection = connecting.connection
    connecting.listener = event => this.#publish(event)
    // Its last calls may take a while to fail; nobody needs to wait for that.
    void old.close()
  }

  #publish(event: VirtEvent): void {
    for (const queue of this.#queues) queue.push(event)
  }
}

/** Whether a call failed because the daemon cannot be reached, rather than because of what was asked. */
export function isConnectionLoss(error: unknown): boolean {
  return isNativeFailure(error) && error.code === 'E_LIBVIRT_CONNECT'
}

/** The failure, where it is one of libvirt's. */
export function libvirtFailure(error: unknown): NativeFailure | undefined {
  return isNativeFailure(error) && error.libvirtCode !== undefined ? error : undefined
}

/** The domain stopped or is no longer known: what was running on it is over. */
export function isDomainGone(error: unknown): boolean {
  return isNativeFailure(error) && (error.code === 'E_DOMAIN_STATE' || error.code === 'E_NOT_FOUND')
}

/** A connection whose events go where `listener` says, once somebody has set it. */
interface Connecting {
  readonly connection: NativeVirtConnection
  listener: (event: VirtEvent) => void
}

async function connect(uri: string, options: HypervisorOptions): Promise<Connecting> {
  const relay: { listener: (event: VirtEvent) => void } = { listener: () => undefined }
  try {
    const connection = await native().virtConnect({
      uri,
      username: options.username,
      passphrase: options.passphrase,
      onEvent: event => relay.listener(event),
    })
    return Object.assign(relay, { connection })
  } catch (error) {
    throw explainConnect(uri, error)
  }
}

function explainConnect(uri: string, error: unknown): unknown {
  if (!isNativeFailure(error)) return error
  const denied = error.code === 'E_LIBVIRT_DENIED'
  const isLogin = error.libvirtCode === AUTH_FAILED
  return new BackupError(denied ? 'E_LIBVIRT_DENIED' : 'E_LIBVIRT_CONNECT', `cannot connect to ${uri}`, {
    why: messageOf(error),
    hints: [
      ...(isLogin
        ? ['give VIRTVAULT_LIBVIRT_USERNAME and VIRTVAULT_LIBVIRT_PASSPHRASE, or _FILE or _COMMAND of it']
        : []),
      `try it by hand:   virsh -c ${uri} version`,
      ...(uri === 'qemu:///system' && process.getuid?.() !== 0
        ? ['for the domains of your own session:   --connect qemu:///session']
        : []),
    ],
    cause: error,
  })
}

async function requireQemu(uri: string, connection: NativeVirtConnection): Promise<void> {
  const driver = await connection.driver()
  if (driver !== 'QEMU') {
    throw new BackupError('E_UNSUPPORTED', `${uri} is driven by ${driver}, which has no pull-mode backup`, {
      why: 'only the QEMU driver of libvirt can back up running domains',
      hints: ['use a URI such as qemu:///system or qemu+ssh://root@host/system'],
    })
  }
  const version = await connection.daemonVersion()
  if (version >= MIN_DAEMON_VERSION) return
  throw new BackupError('E_UNSUPPORTED', `${uri} runs libvirt ${versionText(version)}; 6.10 or newer is needed`)
}

/** `9.0.0` of what libvirt packs into one number. */
export function versionText(version: number): string {
  return [version / 1_000_000, (version / 1000) % 1000, version % 1000].map(Math.trunc).join('.')
}
