import { invariant } from '../base/invariant.js'
import type { ExportedDisk } from '../libvirt/session-types.js'
import { isSameImage, type PlannedDisk } from '../model/pull-plan.js'
import type { BackingImage, DiskBelow, DomainRef } from '../model/recovery-point.js'
import { contentIdOf } from './content-id.js'
import type { DiskExport } from './pull-disk.js'
import type { PullPart } from './pull-part.js'
import type { BelowSession, PullPorts, RunPlaces } from './pull-ports.js'

/** Images whose content was read by this process: what all domains of a run share is read once. */
const MAX_KNOWN = 256
const known = new Map<string, Uint8Array>()

/** The images that one read leaves out, open until it is disposed. */
export class BelowOfRead implements AsyncDisposable {
  readonly #ports: PullPorts
  readonly #session: BelowSession | undefined
  readonly #facts: ReadonlyMap<string, DiskBelow>

  private constructor(
    ports: PullPorts,
    session: BelowSession | undefined,
    facts: ReadonlyMap<string, DiskBelow> = new Map(),
  ) {
    this.#ports = ports
    this.#session = session
    this.#facts = facts
  }

  /**
   * Opens the images and finds out what they hold: from the newest point where
   * their files are as they were then, by reading them otherwise; always by
   * reading where all of the disk is to be checked. Before the backup begins,
   * so that nothing waits for it meanwhile. Rejects as openBelow() and reading do.
   */
  static async open(
    ports: PullPorts,
    read: {
      readonly domain: DomainRef
      readonly disks: readonly PlannedDisk[]
      readonly places: RunPlaces
      readonly parts: readonly PullPart[]
    },
    signal: AbortSignal,
  ): Promise<BelowOfRead> {
    const wanted = new Map(read.disks.flatMap(({ target, below }) => (below === undefined ? [] : [[target, below]])))
    if (wanted.size === 0) return new BelowOfRead(ports, undefined)
    const session = await ports.hypervisor.openBelow(wanted, read.places, signal)
    try {
      const facts = new Map<string, DiskBelow>()
      for (const [target, images] of wanted) {
        const isAudit = read.parts.some(part => part.plannedDisk(target)?.isAudit === true)
        const told = isAudit ? undefined : (toldBefore(read.parts, target, images) ?? known.get(keyOf(images)))
        const subject = read.domain.name
        const contentId = told ?? (await readContent({ ports, session, subject }, target, signal))
        remember(images, contentId)
        facts.set(target, { images, contentId })
      }
      return new BelowOfRead(ports, session, facts)
    } catch (error) {
      await session[Symbol.asyncDispose]()
      throw error
    }
  }

  /** Of a disk; undefined where nothing is left out of it. */
  factsOf(target: string): DiskBelow | undefined {
    return this.#facts.get(target)
  }

  /** What is left out of a disk, to be read; undefined where nothing is. The caller disposes of it. */
  async exportOf(target: string, signal: AbortSignal): Promise<(DiskExport & AsyncDisposable) | undefined> {
    const session = this.#session
    if (session === undefined || !this.#facts.has(target)) return undefined
    return await openExport({ ports: this.#ports, session }, target, signal)
  }

  /** Rejects with E_SOURCE_GONE where an image has changed since: what was compared with it is worth nothing. */
  async check(): Promise<void> {
    await this.#session?.check()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#session?.[Symbol.asyncDispose]()
  }
}

interface Served {
  readonly ports: PullPorts
  readonly session: BelowSession
}

/** What a newest point says of the same images; all of them say the same, or nothing is believed. */
function toldBefore(
  parts: readonly PullPart[],
  target: string,
  images: readonly BackingImage[],
): Uint8Array | undefined {
  const befores = parts.flatMap(part => part.latest?.disks.find(disk => disk.target === target)?.below ?? [])
  const same = befores.find(
    before =>
      before.images.length === images.length && images.every((image, i) => isSameImage(image, before.images[i])),
  )
  return same?.contentId
}

async function readContent(
  { ports, session, subject }: Served & { readonly subject: string },
  target: string,
  signal: AbortSignal,
): Promise<Uint8Array> {
  ports.progress.report({ kind: 'phase', subject, phase: 'images below' })
  await using source = await openExport({ ports, session }, target, signal)
  return await contentIdOf(source, () => undefined, signal)
}

async function openExport({ ports, session }: Served, target: string, signal: AbortSignal) {
  const served = session.exports.get(target)
  invariant(served !== undefined, 'what is left out was opened')
  const disk: ExportedDisk = {
    target,
    exportName: served.exportName,
    size: served.size,
    bitmap: undefined,
    incremental: false,
    base: undefined,
  }
  return await ports.openExport(session.address, disk, signal)
}

/** Block devices have no identity: what they hold is not remembered. */
function remember(images: readonly BackingImage[], contentId: Uint8Array): void {
  if (images.some(image => !isSameImage(image, image))) return
  const [oldest] = known.keys()
  if (known.size >= MAX_KNOWN && oldest !== undefined) known.delete(oldest)
  known.set(keyOf(images), contentId)
}

function keyOf(images: readonly BackingImage[]): string {
  return JSON.stringify(
    images.map(({ path, format, identity, fileBytes, modified }) => [path, format, identity, fileBytes, modified]),
  )
}
