import { messageOf, type Warning } from '../base/errors.js'
import type { BaseHealth } from '../model/pull-plan.js'
import type { DomainRef, PointCheckpoint } from '../model/recovery-point.js'
import { buildRedefineXml } from './checkpoint-xml.js'
import { type Hypervisor, libvirtFailure } from './hypervisor.js'
import type { CountedBase } from './checkpoints.js'
import { countDirty } from './offline-exports.js'
import { addBitmap, removeBitmap } from './image-bitmaps.js'
import type { ChainImage } from './image-chain.js'
import { bitmapChains, describeOff, imageToolsOf, isChainSound, isOff, soundDepth } from './offline-images.js'

/** Flags of virDomainCheckpointCreateXML and -Delete. */
const REDEFINE = 1
const METADATA_ONLY = 2
const never = new AbortController().signal

/** Of a domain that is off: the disks whose images hold the checkpoint's bitmap soundly. libvirt's record is not needed. */
export async function offlineHealth(
  hypervisor: Hypervisor,
  domain: DomainRef,
  checkpoint: PointCheckpoint,
  signal: AbortSignal,
): Promise<BaseHealth> {
  const { disks } = await describeOff(hypervisor, domain)
  const chains = await bitmapChains(hypervisor, disks, signal)
  const sound = [...chains].filter(([, chain]) => isChainSound(chain, checkpoint.name))
  return { known: true, soundDisks: new Set(sound.map(([target]) => target)) }
}

/**
 * Of a domain that is off: what its images have recorded since. They are not
 * locked meanwhile, so that it can be started; an image that is in use by then
 * rejects with E_DOMAIN_BUSY or E_IO.
 */
export async function countOffline(
  hypervisor: Hypervisor,
  domain: DomainRef,
  name: string,
  signal: AbortSignal,
): Promise<CountedBase> {
  const tools = imageToolsOf(hypervisor, domain)
  const { disks } = await describeOff(hypervisor, domain)
  const chains = await bitmapChains(hypervisor, disks, signal)
  const sound = [...chains].flatMap(([target, chain]) => {
    const depth = soundDepth(chain, name)
    return depth === 0 ? [] : [{ target, chain, base: name, depth }]
  })
  const dirtyBytes = await countDirty(tools, sound)
  return { known: true, soundDisks: new Set(sound.map(({ target }) => target)), dirtyBytes }
}

/**
 * Makes a checkpoint of a domain that is off: a bitmap in each top image, then
 * libvirt's record of it. Whatever is written after the first step is in the
 * bitmaps, whoever writes it. Rejects with E_DOMAIN_BUSY where an image is in
 * use, E_IO, or libvirt's failure; the caller then undoes by name.
 */
export async function createOfflineCheckpoint(
  hypervisor: Hypervisor,
  domain: DomainRef,
  what: { readonly name: string; readonly images: ReadonlyMap<string, ChainImage> },
): Promise<void> {
  const tools = imageToolsOf(hypervisor, domain)
  for (const image of what.images.values()) await addBitmap(tools, image, what.name)
  const known = await hypervisor.call(connection => connection.listCheckpoints(domain.uuid))
  const xml = buildRedefineXml(
    {
      name: what.name,
      parent: undefined,
      creationTime: String(Math.trunc(hypervisor.clock.now() / 1000)),
      disks: [...what.images.keys()].map(target => ({ target, bitmap: what.name, dirtyBytes: undefined })),
    },
    known.at(-1)?.name,
  )
  await hypervisor.call(connection => connection.createCheckpoint(domain.uuid, xml, REDEFINE))
}

/**
 * Deletes a checkpoint of a domain that is off: its bitmaps from every image of
 * every disk, then libvirt's record, in this order, so that what fails is found
 * again. Nothing of it there is fine. Rejects with E_DOMAIN_BUSY, E_IO, and
 * E_DOMAIN_STATE where nobody opens its images.
 */
export async function deleteOfflineCheckpoint(hypervisor: Hypervisor, domain: DomainRef, name: string): Promise<void> {
  const tools = imageToolsOf(hypervisor, domain)
  const { disks } = await describeOff(hypervisor, domain)
  for (const chain of (await bitmapChains(hypervisor, disks, never)).values()) {
    for (const image of chain)
      if (image.bitmaps.some(bitmap => bitmap.name === name)) await removeBitmap(tools, image, name)
  }
  try {
    await hypervisor.call(connection => connection.deleteCheckpoint(domain.uuid, name, METADATA_ONLY))
  } catch (error) {
    if (libvirtFailure(error)?.code !== 'E_NOT_FOUND') throw error
  }
}

/**
 * Removes bitmaps that start with `prefix` and that neither libvirt nor `keep`
 * knows: of a run that died between bitmap and record, of a copied or restored
 * image. Only of top images: those below may be another domain's. Says what it
 * did; what fails is a warning.
 */
export async function removeOrphanBitmaps(
  hypervisor: Hypervisor,
  domain: DomainRef,
  which: { readonly prefix: string; readonly keep: ReadonlySet<string> },
): Promise<readonly Warning[]> {
  const xml = await hypervisor.describe(domain.uuid)
  const listed = await hypervisor.call(connection => connection.listCheckpoints(domain.uuid))
  const known = new Set([...listed.map(({ name }) => name), ...which.keep])
  const orphans = new Map<string, string[]>()
  const tops = new Map<string, ChainImage>()
  for (const [target, [top]] of await bitmapChains(hypervisor, xml.disks, never)) {
    if (top === undefined) continue
    tops.set(target, top)
    for (const { name } of top.bitmaps) {
      if (name.startsWith(which.prefix) && !known.has(name)) orphans.set(name, [...(orphans.get(name) ?? []), target])
    }
  }
  const off = orphans.size > 0 && (await isOff(hypervisor, domain))
  const { images: tools } = hypervisor.files
  const warnings: Warning[] = []
  for (const [name, targets] of orphans) {
    const where = `${domain.name} (${targets.join(', ')})`
    try {
      if (off && tools !== undefined) {
        for (const target of targets) {
          const top = tops.get(target)
          if (top !== undefined) await removeBitmap(tools, top, name)
        }
      } else {
        await removeThroughLibvirt(hypervisor, domain, { name, targets })
      }
      warnings.push({
        code: 'W_RECOVERED',
        message: `removed dirty bitmap ${name} of ${where}, which libvirt did not know`,
      })
    } catch (error) {
      warnings.push({
        code: 'W_CLEANUP',
        message: `dirty bitmap ${name} of ${where} was not removed: ${messageOf(error)}`,
      })
    }
  }
  return warnings
}

/** Only a checkpoint can be deleted, so the bitmap becomes one first. */
async function removeThroughLibvirt(
  hypervisor: Hypervisor,
  domain: DomainRef,
  orphan: { readonly name: string; readonly targets: readonly string[] },
): Promise<void> {
  const { name } = orphan
  const disks = orphan.targets.map(target => ({ target, bitmap: name, dirtyBytes: undefined }))
  const xml = buildRedefineXml({ name, parent: undefined, creationTime: '1', disks }, undefined)
  await hypervisor.call(connection => connection.createCheckpoint(domain.uuid, xml, REDEFINE))
  try {
    await hypervisor.call(connection => connection.deleteCheckpoint(domain.uuid, name, 0))
  } catch (error) {
    await hypervisor.call(connection => connection.deleteCheckpoint(domain.uuid, name, METADATA_ONLY))
    throw error
  }
}
