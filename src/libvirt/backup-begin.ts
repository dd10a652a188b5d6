import { throwIfAborted } from '../base/async.js'
import { BackupError, type Warning } from '../base/errors.js'
import { invariant } from '../base/invariant.js'
import { buildBackupXml, buildCheckpointXml, parseBackupXml, type BackupDisk } from './backup-xml.js'
import { deleteCheckpoint, soundDisks } from './checkpoints.js'
import { type Hypervisor, libvirtFailure } from './hypervisor.js'
import type { RequestedDisk, ExportedDisk, SessionRequest } from './session-types.js'

export interface BegunBackup {
  readonly disks: readonly ExportedDisk[]
  /** Wall-clock milliseconds, just before the instant that the disks show. */
  readonly time: number
  /** Bases that libvirt did not confirm. */
  readonly warnings: readonly Warning[]
}

/** VIR_ERR_NO_DOMAIN_CHECKPOINT and VIR_ERR_CHECKPOINT_INCONSISTENT. */
const CHAIN_ERRORS: readonly (number | undefined)[] = [103, 109]

/**
 * Begins libvirt's job. Where a base is gone or broken, once more with the
 * disks concerned in full, and at last with all in full; a full read is never
 * wrong, only longer. Rejects with libvirt's failure; the caller then undoes
 * by name, because a begin that failed may have left anything.
 */
export async function beginWithFallback(
  hypervisor: Hypervisor,
  request: SessionRequest,
  signal: AbortSignal,
): Promise<BegunBackup> {
  const plans = [
    () => Promise.resolve(request.disks),
    () => withoutBrokenBases(hypervisor, request),
    () => Promise.resolve(request.disks.map(inFull)),
  ]
  for (const [attempt, plan] of plans.entries()) {
    throwIfAborted(signal)
    const disks = await plan()
    const time = hypervisor.clock.now()
    try {
      await begin(hypervisor, request, disks)
      return await readBack(hypervisor, request, { disks, time })
    } catch (error) {
      const isChainBroken = CHAIN_ERRORS.includes(libvirtFailure(error)?.libvirtCode)
      if (!isChainBroken || attempt === plans.length - 1) throw error
      // A begin that failed late has made the checkpoint, and its name is needed again.
      if (request.checkpoint !== undefined) await deleteCheckpoint(hypervisor, request.domain, request.checkpoint)
    }
  }
  invariant(false, 'the last plan returns or throws')
}

/** Not through call(): a begin whose answer was lost may have happened, so it is never sent twice. */
async function begin(hypervisor: Hypervisor, request: SessionRequest, disks: readonly RequestedDisk[]): Promise<void> {
  const tracked = disks.filter(disk => disk.tracked).map(disk => disk.target)
  const { checkpoint } = request
  const checkpointXml = checkpoint === undefined ? undefined : buildCheckpointXml(checkpoint, tracked)
  const backupXml = buildBackupXml(request.socket, disks)
  await hypervisor.connection.backupBegin(request.domain.uuid, backupXml, checkpointXml, 0)
}

/** Asks libvirt base by base for the disks whose bitmap is sound; one that cannot be asked counts as broken. */
async function withoutBrokenBases(hypervisor: Hypervisor, request: SessionRequest): Promise<readonly RequestedDisk[]> {
  const bases = new Set(request.disks.flatMap(disk => disk.base ?? []))
  const sound = new Map<string, ReadonlySet<string>>()
  for (const base of bases) sound.set(base, await soundDisks(hypervisor, request.domain, base))
  return request.disks.map(disk => {
    const isSound = disk.base !== undefined && sound.get(disk.base)?.has(disk.target) === true
    return isSound ? disk : inFull(disk)
  })
}

function inFull(disk: RequestedDisk): RequestedDisk {
  return { ...disk, base: undefined }
}

/** I7: what counts is what libvirt says it does, not what it was asked for. */
async function readBack(
  hypervisor: Hypervisor,
  request: SessionRequest,
  tried: { readonly disks: readonly RequestedDisk[]; readonly time: number },
): Promise<BegunBackup> {
  const { domain } = request
  const xml = await hypervisor.call(connection => connection.backupXml(domain.uuid))
  const running = xml === undefined ? undefined : parseBackupXml(xml)
  if (running?.socket !== request.socket) {
    throw new BackupError('E_SOURCE_GONE', `the backup job of ${domain.name} ended as soon as it had begun`)
  }
  const warnings: Warning[] = []
  const disks: ExportedDisk[] = []
  for (const asked of request.disks) {
    const found = running.disks.find(disk => disk.target === asked.target)
    if (found === undefined) {
      throw new BackupError('E_LIBVIRT', `libvirt left disk ${asked.target} of ${domain.name} out of the backup`)
    }
    const bitmap = confirmedBitmap(asked, found)
    if (bitmap === undefined && asked.base !== undefined) warnings.push(chainWarning(asked.target, asked.base))
    const { capacity } = await hypervisor.call(connection => connection.blockInfo(domain.uuid, asked.target))
    const incremental = bitmap !== undefined
    disks.push({
      target: asked.target,
      exportName: found.exportName,
      bitmap,
      incremental,
      base: incremental ? asked.base : undefined,
      size: capacity,
    })
  }
  return { disks, time: tried.time, warnings }
}

function confirmedBitmap(asked: RequestedDisk, found: BackupDisk): string | undefined {
  const isConfirmed = asked.base !== undefined && found.incremental && found.base === asked.base
  return isConfirmed ? found.bitmap : undefined
}

function chainWarning(target: string, base: string): Warning {
  return {
    code: 'W_CHAIN',
    message: `${target}: libvirt has no sound dirty bitmap since ${base}: reading everything, storing only what changed`,
  }
}
