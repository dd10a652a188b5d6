import type { Clock } from '../base/clock.js'
import { errorCodeOf, messageOf } from '../base/errors.js'
import type { DomainJob } from '../model/domain-job.js'
import { MINUTE_MS, SECOND_MS } from '../model/duration.js'
import type { DomainRef } from '../model/recovery-point.js'
import type { KnownDomain } from './plan-tasks.js'

/** The libvirt that the daemon follows; `cli/` makes it. Calls reject with E_LIBVIRT_CONNECT while it is away. */
export interface Machine extends AsyncDisposable {
  readonly uri: string
  domains(): Promise<readonly (DomainRef & { readonly isRunning: boolean })[]>
  /** In the domain's metadata. Rejects with E_CONFIG for what cannot be read. */
  jobs(uuid: string): Promise<readonly DomainJob[]>
  /** What happened to domains; `lost` once the connection is gone. Hints: some may be missed. */
  events(signal: AbortSignal): AsyncIterable<MachineEvent>
  reconnect(): Promise<void>
}

export type MachineEvent =
  | { readonly kind: 'lost' }
  | { readonly kind: 'domain'; readonly uuid: string; readonly hasMigrated?: boolean | undefined }

export interface DomainFollowerPorts {
  readonly clock: Clock
  connect(signal: AbortSignal): Promise<Machine>
  /** All domains, whenever one of them, its name, state or jobs changed. */
  onDomains(domains: readonly KnownDomain[]): void
  onConnected(machine: Machine): void
  onLost(): void
  note(level: 'info' | 'warning' | 'error', message: string): void
}

/** Events can be missed; then it takes this long until a change is seen. */
const POLL_MS = 5 * MINUTE_MS
/** A domain that is defined comes with several events. */
const SETTLE_MS = 200
const FIRST_PAUSE_MS = SECOND_MS
const LONGEST_PAUSE_MS = MINUTE_MS

/**
 * Follows the domains of one libvirt until it is aborted: connects, and again
 * after every loss, with growing pauses; reads domains and the jobs in their
 * metadata, and again what an event hints at.
 */
export class DomainFollower {
  readonly #ports: DomainFollowerPorts
  #known = new Map<string, KnownDomain>()
  readonly #touched = new Set<string>()
  readonly #migrated = new Set<string>()
  /** Complaints that were made, so that none is made twice. */
  readonly #complaints = new Map<string, string>()
  #waker = new AbortController()
  #isLost = false
  #isFirst = true

  constructor(ports: DomainFollowerPorts) {
    this.#ports = ports
  }

  async run(signal: AbortSignal): Promise<void> {
    const onAbort = () => this.#waker.abort()
    signal.addEventListener('abort', onAbort, { once: true })
    try {
      await using machine = await this.#connect(signal)
      if (machine === undefined) return
      const pump = this.#pump(machine, signal)
      try {
        await this.#follow(machine, signal)
      } finally {
        this.#waker.abort()
        await pump
      }
    } finally {
      signal.removeEventListener('abort', onAbort)
    }
  }

  async #connect(signal: AbortSignal): Promise<Machine | undefined> {
    let machine: Machine | undefined
    const connect = async () => {
      machine = await this.#ports.connect(signal)
    }
    await this.#persist('libvirt cannot be reached', connect, signal)
    return machine
  }

  async #follow(machine: Machine, signal: AbortSignal): Promise<void> {
    let isWhole = true
    while (!signal.aborted) {
      this.#waker = new AbortController()
      try {
        await this.#refresh(machine, isWhole)
        if (this.#isFirst || this.#isLost) this.#ports.onConnected(machine)
        this.#isFirst = false
        this.#isLost = false
        isWhole = await this.#pause(signal)
      } catch (error) {
        if (signal.aborted) return
        this.#isLost = true
        this.#complain('libvirt', `the domains cannot be listed: ${messageOf(error)}`)
      }
      if (!this.#isLost) continue
      this.#ports.onLost()
      await this.#persist('libvirt is gone', () => machine.reconnect(), signal)
      isWhole = true
    }
  }

  /** Until something happens; true where everything is to be looked at. */
  async #pause(signal: AbortSignal): Promise<boolean> {
    const { clock } = this.#ports
    try {
      if (this.#touched.size === 0) await clock.sleep(POLL_MS, this.#waker.signal)
      else await clock.sleep(SETTLE_MS, signal)
      return this.#touched.size === 0
    } catch {
      if (!signal.aborted && !this.#isLost) await clock.sleep(SETTLE_MS, signal).catch(() => undefined)
      return false
    }
  }

  async #refresh(machine: Machine, isWhole: boolean): Promise<void> {
    const touched = new Set(this.#touched)
    this.#touched.clear()
    const found = new Map<string, KnownDomain>()
    for (const { uuid, name, isRunning } of await machine.domains()) {
      const before = this.#known.get(uuid)
      const isStale = isWhole || before === undefined || touched.has(uuid)
      const jobs = isStale ? await this.#jobs(machine, { uuid, name }, before) : before.jobs
      // Undefined since it was listed.
      if (jobs === undefined) continue
      found.set(uuid, { ref: { uuid, name }, isRunning, jobs })
    }
    const before = this.#known
    this.#known = found
    if (this.#isFirst || isDifferent(before, found)) this.#tell(before, found)
  }

  /** What cannot be read leaves what was read before. */
  async #jobs(
    machine: Machine,
    domain: DomainRef,
    before: KnownDomain | undefined,
  ): Promise<readonly DomainJob[] | undefined> {
    try {
      const jobs = await machine.jobs(domain.uuid)
      this.#complaints.delete(domain.uuid)
      return jobs
    } catch (error) {
      const code = errorCodeOf(error)
      if (code === 'E_NOT_FOUND') return undefined
      if (code !== 'E_CONFIG') throw error
      const kept = before === undefined ? 'it has no job of its own until then' : 'what it said before goes on'
      this.#complain(domain.uuid, `${domain.name}: ${messageOf(error)}; ${kept}`)
      return before?.jobs ?? []
    }
  }

  #tell(before: ReadonlyMap<string, KnownDomain>, now: ReadonlyMap<string, KnownDomain>): void {
    if (!this.#isFirst) {
      for (const [uuid, { ref }] of now) {
        const old = before.get(uuid)?.ref.name
        if (old === undefined) this.#ports.note('info', `${ref.name} is new here`)
        else if (old !== ref.name) this.#ports.note('info', `${old} is called ${ref.name} now`)
      }
      for (const [uuid, { ref }] of before) {
        if (now.has(uuid)) continue
        const why = this.#migrated.delete(uuid) ? 'has moved to another host' : 'is not defined here any more'
        this.#ports.note('warning', `${ref.name} ${why}: its jobs end here, its recovery points stay`)
      }
    }
    this.#ports.onDomains([...now.values()])
  }

  async #pump(machine: Machine, signal: AbortSignal): Promise<void> {
    for await (const event of machine.events(signal)) {
      if (event.kind === 'lost') this.#isLost = true
      else {
        this.#touched.add(event.uuid)
        if (event.hasMigrated === true) this.#migrated.add(event.uuid)
        else this.#migrated.delete(event.uuid)
      }
      this.#waker.abort()
    }
  }

  /** Tries until it works or `signal` aborts. */
  async #persist(what: string, attempt: () => Promise<void>, signal: AbortSignal): Promise<void> {
    let pause = FIRST_PAUSE_MS
    while (!signal.aborted) {
      try {
        await attempt()
        if (this.#complaints.delete('libvirt')) this.#ports.note('info', 'libvirt is there again')
        return
      } catch (error) {
        if (signal.aborted) return
        this.#complain('libvirt', `${what}: ${messageOf(error)}`)
        await this.#ports.clock.sleep(pause, signal).catch(() => undefined)
        pause = Math.min(pause * 2, LONGEST_PAUSE_MS)
      }
    }
  }

  #complain(about: string, message: string): void {
    if (this.#complaints.get(about) === message || (about === 'libvirt' && this.#complaints.has(about))) return
    this.#complaints.set(about, message)
    this.#ports.note('warning', message)
  }
}

function isDifferent(before: ReadonlyMap<string, KnownDomain>, now: ReadonlyMap<string, KnownDomain>): boolean {
  if (before.size !== now.size) return true
  return [...now].some(([uuid, { ref, isRunning, jobs }]) => {
    const old = before.get(uuid)
    if (old === undefined || old.ref.name !== ref.name || old.isRunning !== isRunning) return true
    return old.jobs !== jobs && JSON.stringify(old.jobs) !== JSON.stringify(jobs)
  })
}
