import { join } from 'node:path'

import { throwIfAborted } from '../base/async.js'
import type { Clock } from '../base/clock.js'
import { messageOf } from '../base/errors.js'
import type { RestoredSource, RestoredXml, RestoreXmlOptions } from '../libvirt/restore-xml.js'
import type { RecoveryPoint } from '../model/recovery-point.js'
import type { NativeVirtConnection } from '../native/virt.js'
import type { StorePort } from '../store/store-types.js'
import type { Progress } from './progress.js'
import { readDefinition } from './restore-domain.js'
import type { ServeJob } from './serve-job.js'

const POLL_MS = 500
const AGENT_TIMEOUT_SECONDS = 5
/** A guest without agent or pattern is believed when its screen has changed this often. */
const SCREEN_CHANGES = 3
/** What no healthy guest prints while it boots. */
const BROKEN =
  /Kernel panic|Unable to mount root|emergency mode|dracut-emergency|grub rescue|No bootable device|Buffer I\/O error|I\/O error, dev/i

/** A directory for one trial, which removes itself. */
export interface TrialFolder extends AsyncDisposable {
  /** Absolute; QEMU may enter it. */
  readonly path: string
}

export interface TpmFile {
  readonly name: string
  readonly bytes: Uint8Array
}

export interface BootPorts {
  readonly store: Pick<StorePort, 'readBlob' | 'points'>
  readonly host: Pick<
    NativeVirtConnection,
    'createDomainXml' | 'destroyDomain' | 'lookupDomain' | 'agentPing' | 'screenshot'
  >
  readonly serve: (point: RecoveryPoint, socket: string) => Promise<ServeJob>
  readonly createOverlay: (spec: {
    readonly path: string
    readonly size: number
    readonly backing: { readonly socket: string; readonly exportName: string }
  }) => Promise<void>
  /** `rewriteDomainXml` of libvirt/. */
  readonly rewrite: (xml: string, options: RestoreXmlOptions) => RestoredXml
  readonly makeFolder: () => Promise<TrialFolder>
  /** Gives a domain the TPM state of a point, by names such as `tpm/tpm2/tpm2-00.permall`; disposing removes it. */
  readonly placeTpm: (uuid: string, files: readonly TpmFile[]) => Promise<AsyncDisposable>
  /** undefined while there is no such file. */
  readonly readText: (path: string) => Promise<string | undefined>
  /** Closed to others, but for QEMU. */
  readonly writeFile: (path: string, bytes: Uint8Array) => Promise<void>
  readonly newUuid: () => string
  readonly clock: Clock
  readonly progress: Progress
}

export interface BootRequest {
  readonly point: RecoveryPoint
  readonly timeoutMs: number
  /** Looked for on the first serial port, beside the agent. */
  readonly consolePattern?: RegExp | undefined
}

export interface BootResult {
  readonly ok: boolean
  readonly seconds: number
  /** `agent`, `console`, `screen`; undefined where it did not boot. */
  readonly by: string | undefined
  /** One sentence. */
  readonly detail: string
}

/** What one look at the guest says. */
type Sign =
  | { readonly kind: 'waiting' }
  | { readonly kind: 'up'; readonly by: string }
  | { readonly kind: 'down'; readonly why: string }

/**
 * Starts a recovery point as a transient domain of another name, without
 * network and without devices of the host, on throw-away overlays over its
 * export, and waits for a sign of life: the guest agent, a pattern on the
 * serial console, or a screen that goes on changing. A guest that meets
 * something the store cannot give back has failed, whatever it says. The
 * outcome is kept with the point; nothing else stays.
 */
export class BootTest {
  readonly #ports: BootPorts

  constructor(ports: BootPorts) {
    this.#ports = ports
  }

  /** A guest that does not boot is a result. Rejects where the trial itself cannot be made: E_LIBVIRT, E_TOOL_MISSING, E_INTERRUPTED. */
  async run(request: BootRequest, signal: AbortSignal): Promise<BootResult> {
    const { store, clock, progress } = this.#ports
    const { point } = request
    const subject = point.domain.name
    progress.report({ kind: 'started', subject, verb: 'verify', facts: [['level', 'boot']] })
    const result = await this.#try(request, signal)
    const { ok, detail } = result
    const notes = await store.points.notes(point)
    await store.points.annotate(point, { ...notes, verified: { level: 'boot', time: clock.now(), ok, detail } })
    progress.report({ kind: 'finished', subject, status: ok ? 'success' : 'failed', point: point.id })
    return result
  }

  async #try(request: BootRequest, signal: AbortSignal): Promise<BootResult> {
    const { clock, host, progress } = this.#ports
    const { point } = request
    await using folder = await this.#ports.makeFolder()
    await using job = await this.#ports.serve(point, join(folder.path, 'nbd.sock'))
    const consoleLog = join(folder.path, 'console.log')
    const trialUuid = this.#ports.newUuid()
    const { xml, hasAgent } = await this.#trialXml(point, { uuid: trialUuid, folder: folder.path, consoleLog, job })
    // A disk that is sealed to the TPM does not open with an empty one.
    await using _tpm = await this.#ports.placeTpm(trialUuid, await this.#tpmOf(point))
    progress.report({ kind: 'phase', subject: point.domain.name, phase: 'boot' })
    const started = clock.monotonic()
    const seconds = () => Math.round(clock.monotonic() - started) / 1000
    // It ends with our connection to libvirt, however we end.
    const { uuid } = await host.createDomainXml(xml, { autodestroy: true })
    try {
      const look = new GuestWatch(this.#ports, { uuid, consoleLog, hasAgent, pattern: request.consolePattern })
      for (;;) {
        throwIfAborted(signal)
        const sign = await look.look()
        if (job.failedReads > 0) {
          return failed(seconds(), 'the guest read what the store cannot give back')
        }
        if (sign.kind === 'down') return failed(seconds(), sign.why)
        if (sign.kind === 'up') {
          const detail = `booted in ${seconds().toFixed(1)} s (${sign.by})`
          return { ok: true, seconds: seconds(), by: sign.by, detail }
        }
        if (clock.monotonic() - started > request.timeoutMs) {
          return failed(seconds(), 'no sign of life in time')
        }
        await clock.sleep(POLL_MS, signal)
      }
    } finally {
      await host.destroyDomain(uuid, {}).catch(() => undefined)
    }
  }

  async #trialXml(
    point: RecoveryPoint,
    where: {
      readonly uuid: string
      readonly folder: string
      readonly consoleLog: string
      readonly job: ServeJob
    },
  ): Promise<{ readonly xml: string; readonly hasAgent: boolean }> {
    const { store, createOverlay, rewrite } = this.#ports
    const { uuid } = where
    const disks = new Map<string, RestoredSource>()
    for (const [index, { target, size, exportName }] of where.job.disks.entries()) {
      const path = join(where.folder, `disk-${index}.qcow2`)
      const backing = { socket: join(where.folder, 'nbd.sock'), exportName }
      await createOverlay({ path, size, backing })
      disks.set(target, { kind: 'file', path, format: 'qcow2', backing })
    }
    const original = await readDefinition(store, point)
    const { xml } = rewrite(original, {
      name: `virtvault-boot-${uuid.slice(0, 8)}`,
      uuid,
      macs: 'new',
      network: { kind: 'none' },
      disks,
      nvram: await this.#nvram(point, where.folder),
      ownNamespaces: [],
      trial: { consoleLog: where.consoleLog },
    })
    return { xml, hasAgent: original.includes('org.qemu.guest_agent.0') }
  }

  async #tpmOf(point: RecoveryPoint): Promise<readonly TpmFile[]> {
    const files: TpmFile[] = []
    for (const blob of point.blobs) {
      if (blob.name.startsWith('tpm/')) files.push({ name: blob.name, bytes: await this.#ports.store.readBlob(blob) })
    }
    return files
  }

  async #nvram(point: RecoveryPoint, folder: string): Promise<string | undefined> {
    const blob = point.blobs.find(({ name }) => name === 'nvram')
    if (blob === undefined) return undefined
    const path = join(folder, 'nvram.fd')
    await this.#ports.writeFile(path, await this.#ports.store.readBlob(blob))
    return path
  }
}

interface Watched {
  readonly uuid: string
  readonly consoleLog: string
  readonly hasAgent: boolean
  readonly pattern: RegExp | undefined
}

/** Looks for signs of life. */
class GuestWatch {
  readonly #ports: BootPorts
  readonly #guest: Watched
  #screen: Buffer | undefined
  #changes = 0

  constructor(ports: BootPorts, guest: Watched) {
    this.#ports = ports
    this.#guest = guest
  }

  async look(): Promise<Sign> {
    const { pattern, hasAgent } = this.#guest
    if (!(await this.#isThere())) return { kind: 'down', why: 'the domain ended by itself' }
    const text = (await this.#ports.readText(this.#guest.consoleLog)) ?? ''
    const broken = BROKEN.exec(text)
    if (broken !== null) return { kind: 'down', why: `its console says "${broken[0]}"` }
    if (pattern !== undefined) return pattern.test(text) ? { kind: 'up', by: 'console' } : { kind: 'waiting' }
    if (hasAgent) return (await this.#agentAnswers()) ? { kind: 'up', by: 'agent' } : { kind: 'waiting' }
    return (await this.#screenLives()) ? { kind: 'up', by: 'screen' } : { kind: 'waiting' }
  }

  async #isThere(): Promise<boolean> {
    try {
      await this.#ports.host.lookupDomain(this.#guest.uuid)
      return true
    } catch {
      return false
    }
  }

  async #agentAnswers(): Promise<boolean> {
    try {
      await this.#ports.host.agentPing(this.#guest.uuid, AGENT_TIMEOUT_SECONDS)
      return true
    } catch {
      return false
    }
  }

  async #screenLives(): Promise<boolean> {
    try {
      const bytes = Buffer.from((await this.#ports.host.screenshot(this.#guest.uuid)).bytes)
      if (this.#screen !== undefined && !this.#screen.equals(bytes)) this.#changes++
      this.#screen = bytes
      return this.#changes >= SCREEN_CHANGES
    } catch (error) {
      // A guest without a screen never shows one.
      void messageOf(error)
      return false
    }
  }
}

function failed(seconds: number, why: string): BootResult {
  return { ok: false, seconds, by: undefined, detail: `did not boot: ${why}` }
}
