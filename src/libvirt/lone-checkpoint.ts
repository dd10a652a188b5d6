import type { DomainRef, PointCheckpoint } from '../model/recovery-point.js'
import { buildCheckpointXml } from './backup-xml.js'
import { checkpointXml, deleteCheckpoint } from './checkpoints.js'
import type { Hypervisor } from './hypervisor.js'
import type { ChainImage } from './image-chain.js'
import { createOfflineCheckpoint } from './offline-checkpoints.js'
import { bitmapChains, describeOff, imageToolsOf, isOff } from './offline-images.js'
import type { NewCheckpoint } from './session-types.js'

const never = new AbortController().signal

/**
 * A checkpoint made without a backup: of the further targets of a read, just
 * before it begins. Its bitmap has all that is written after the read's
 * instant, and a little of what was before.
 */
export class LoneCheckpoint implements NewCheckpoint {
  readonly checkpoint: PointCheckpoint
  readonly #hypervisor: Hypervisor
  readonly #domain: DomainRef
  #kept = false

  private constructor(hypervisor: Hypervisor, domain: DomainRef, checkpoint: PointCheckpoint) {
    this.#hypervisor = hypervisor
    this.#domain = domain
    this.checkpoint = checkpoint
  }

  /** Rejects with libvirt's failure, with E_DOMAIN_BUSY or E_IO where the domain is off. */
  static async make(
    hypervisor: Hypervisor,
    domain: DomainRef,
    what: { readonly name: string; readonly disks: readonly string[] },
  ): Promise<LoneCheckpoint> {
    const { name, disks } = what
    try {
      if (await isOff(hypervisor, domain)) {
        await createOfflineCheckpoint(hypervisor, domain, { name, images: await topImages(hypervisor, domain, disks) })
      } else {
        const xml = buildCheckpointXml(name, disks)
        await hypervisor.connection.createCheckpoint(domain.uuid, xml, 0)
      }
      return new LoneCheckpoint(hypervisor, domain, { name, xml: await checkpointXml(hypervisor, domain, name), disks })
    } catch (error) {
      // A call whose answer was lost may have made it.
      await deleteCheckpoint(hypervisor, domain, name).catch(() => undefined)
      throw error
    }
  }

  keepCheckpoint(): Promise<void> {
    this.#kept = true
    return Promise.resolve()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#kept) return
    await deleteCheckpoint(this.#hypervisor, this.#domain, this.checkpoint.name).catch(() => undefined)
  }
}

async function topImages(
  hypervisor: Hypervisor,
  domain: DomainRef,
  targets: readonly string[],
): Promise<ReadonlyMap<string, ChainImage>> {
  imageToolsOf(hypervisor, domain)
  const { disks } = await describeOff(hypervisor, domain)
  const images = new Map<string, ChainImage>()
  for (const [target, [top]] of await bitmapChains(hypervisor, disks, never)) {
    if (top !== undefined && targets.includes(target)) images.set(target, top)
  }
  return images
}
