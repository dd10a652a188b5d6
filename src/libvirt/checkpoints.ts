import { BackupError, errorCodeOf, messageOf, type Warning } from '../base/errors.js'
import type { BaseHealth } from '../model/pull-plan.js'
import type { DomainRef, PointCheckpoint } from '../model/recovery-point.js'
import { buildRedefineXml, parseCheckpointXml, type CheckpointDescription } from './checkpoint-xml.js'
import { isDomainGone, libvirtFailure, type Hypervisor } from './hypervisor.js'
import { deleteOfflineCheckpoint, removeOrphanBitmaps } from './offline-checkpoints.js'
import { isOff } from './offline-images.js'

/** Flags of virDomainCheckpointGetXMLDesc, -CreateXML and -Delete. */
const NO_DOMAIN = 2
const SIZE = 4
const REDEFINE = 1
const REDEFINE_VALIDATE = 4
const METADATA_ONLY = 2
/** VIR_ERR_INTERNAL_ERROR: "bitmap '…' not found in backing chain". */
const INTERNAL_ERROR = 1

const UNKNOWN: BaseHealth = { known: false, soundDisks: new Set() }

/** Names of the checkpoints that start with `prefix`, oldest first; those of other stores and tools are not ours to touch. */
export async function listCheckpoints(
  hypervisor: Hypervisor,
  domain: DomainRef,
  prefix: string,
): Promise<readonly string[]> {
  const all = await hypervisor.call(connection => connection.listCheckpoints(domain.uuid))
  return all.map(({ name }) => name).filter(name => name.startsWith(prefix))
}

/** The checkpoint as libvirt knows it, without its domain: what a recovery point keeps to redefine it. */
export async function checkpointXml(hypervisor: Hypervisor, domain: DomainRef, name: string): Promise<string> {
  return hypervisor.call(connection => connection.checkpointXml(domain.uuid, name, NO_DOMAIN))
}

/**
 * Whether libvirt has `checkpoint`, and for which disks its bitmap is sound, by
 * the very test that begin applies. Metadata that libvirt lost (a rename, a
 * migration, a transient domain) is redefined first, if the bitmaps are there.
 * Needs a running domain: of one that is off, nothing is known.
 */
export async function probeCheckpoint(
  hypervisor: Hypervisor,
  domain: DomainRef,
  checkpoint: PointCheckpoint,
): Promise<BaseHealth> {
  try {
    const found = await describe(hypervisor, domain, checkpoint.name)
    if (found !== undefined) return healthOf(found)
    if (!(await redefine(hypervisor, domain, checkpoint.xml))) return UNKNOWN
    const redefined = await describe(hypervisor, domain, checkpoint.name)
    return redefined === undefined ? UNKNOWN : healthOf(redefined)
  } catch (error) {
    if (isDomainGone(error)) return UNKNOWN
    throw error
  }
}

/** As libvirt has it now, with what was written since; changes nothing. Needs a running domain. */
export async function countSince(hypervisor: Hypervisor, domain: DomainRef, name: string): Promise<CountedBase> {
  const found = await describe(hypervisor, domain, name)
  if (found === undefined) return { ...UNKNOWN, dirtyBytes: new Map() }
  const health = healthOf(found)
  const counted = found.disks.filter(({ target }) => health.soundDisks.has(target))
  return { ...health, dirtyBytes: new Map(counted.map(({ target, dirtyBytes }) => [target, dirtyBytes ?? 0])) }
}

export interface CountedBase extends BaseHealth {
  readonly dirtyBytes: ReadonlyMap<string, number>
}

/** Of the named checkpoint, the disks whose bitmap is sound; none where there is no such checkpoint. */
export async function soundDisks(
  hypervisor: Hypervisor,
  domain: DomainRef,
  name: string,
): Promise<ReadonlySet<string>> {
  const found = await describe(hypervisor, domain, name)
  return found === undefined ? new Set() : healthOf(found).soundDisks
}

/**
 * Deletes a checkpoint with its bitmaps; one that does not exist is deleted
 * already. Where a bitmap is missing (QEMU crashed), libvirt refuses to delete
 * any, so they go disk by disk, then the metadata. Of a domain that is off they
 * are taken out of the images; rejects with E_DOMAIN_BUSY where one is in use.
 */
export async function deleteCheckpoint(hypervisor: Hypervisor, domain: DomainRef, name: string): Promise<void> {
  const remove = (flags: number) => hypervisor.call(connection => connection.deleteCheckpoint(domain.uuid, name, flags))
  try {
    if (await isOff(hypervisor, domain)) {
      await deleteOfflineCheckpoint(hypervisor, domain, name)
      return
    }
    await remove(0)
    return
  } catch (error) {
    // The domain is gone, and with it what libvirt knew about it.
    if (errorCodeOf(error) === 'E_NOT_FOUND') return
    if (libvirtFailure(error)?.libvirtCode !== INTERNAL_ERROR) throw error
  }
  const known = parseCheckpointXml(await checkpointXml(hypervisor, domain, name))
  for (const disk of known.disks) {
    const alone = buildRedefineXml({ ...known, disks: [disk] }, undefined)
    try {
      await hypervisor.call(connection => connection.createCheckpoint(domain.uuid, alone, REDEFINE))
      await remove(0)
    } catch (error) {
      // This is the disk, or one of those, without the bitmap.
      if (libvirtFailure(error) === undefined) throw error
    }
  }
  await remove(METADATA_ONLY)
}

/**
 * Deletes the checkpoints that start with `prefix` but those in `keep`. Goes on
 * after a failure; what stays is reported as W_CLEANUP and tried again by the
 * next run. Bitmaps of ours without a checkpoint go too, as W_RECOVERED.
 */
export async function deleteOtherCheckpoints(
  hypervisor: Hypervisor,
  domain: DomainRef,
  which: { readonly prefix: string; readonly keep: ReadonlySet<string> },
): Promise<{ readonly deleted: readonly string[]; readonly warnings: readonly Warning[] }> {
  const deleted: string[] = []
  const warnings: Warning[] = []
  for (const name of await listCheckpoints(hypervisor, domain, which.prefix)) {
    if (which.keep.has(name)) continue
    try {
      await deleteCheckpoint(hypervisor, domain, name)
      deleted.push(name)
    } catch (error) {
      warnings.push(cleanupWarning(domain, name, error))
    }
  }
  warnings.push(...(await removeOrphanBitmaps(hypervisor, domain, which)))
  return { deleted, warnings }
}

/** Says that a checkpoint stays behind for now. */
export function cleanupWarning(domain: DomainRef, name: string, error: unknown): Warning {
  return { code: 'W_CLEANUP', message: `checkpoint ${name} of ${domain.name} was not deleted: ${messageOf(error)}` }
}

async function describe(
  hypervisor: Hypervisor,
  domain: DomainRef,
  name: string,
): Promise<CheckpointDescription | undefined> {
  try {
    return parseCheckpointXml(
      await hypervisor.call(connection => connection.checkpointXml(domain.uuid, name, NO_DOMAIN | SIZE)),
    )
  } catch (error) {
    if (libvirtFailure(error)?.code === 'E_NOT_FOUND') return undefined
    throw error
  }
}

function healthOf(checkpoint: CheckpointDescription): BaseHealth {
  const sound = checkpoint.disks.filter(disk => disk.dirtyBytes !== undefined && disk.bitmap === checkpoint.name)
  return { known: true, soundDisks: new Set(sound.map(disk => disk.target)) }
}

/** Whether libvirt accepted a checkpoint that it did not know. */
async function redefine(hypervisor: Hypervisor, domain: DomainRef, xml: string): Promise<boolean> {
  try {
    // Without its parent: that may be gone, and nothing here asks for it.
    const text = buildRedefineXml(parseCheckpointXml(xml), undefined)
    await hypervisor.call(connection => connection.createCheckpoint(domain.uuid, text, REDEFINE | REDEFINE_VALIDATE))
    return true
  } catch (error) {
    const isRefused = libvirtFailure(error) !== undefined && !isDomainGone(error)
    const isDamaged = error instanceof BackupError && error.code === 'E_LIBVIRT'
    if (isRefused || isDamaged) return false
    throw error
  }
}
