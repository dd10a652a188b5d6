import { throwIfAborted } from '../base/async.js'
import { BackupError, messageOf, type Warning } from '../base/errors.js'
import { invariant } from '../base/invariant.js'
import { buildBackupXml, buildCheckpointXml, parseBackupXml, type BackupDisk, type ServerPlace } from './backup-xml.js'
import { deleteCheckpoint, soundDisks } from './checkpoints.js'
import { type Hypervisor, libvirtFailure } from './hypervisor.js'
import { isMarked } from './run-places.js'
import type { ExportedDisk, RequestedDisk, SessionAddress, SessionRequest } from './session-types.js'

export interface BegunBackup {
  readonly disks: readonly ExportedDisk[]
  readonly address: SessionAddress
  /** Wall-clock milliseconds, just before the instant that the disks show. */
  readonly time: number
  /** libvirt's names of the images that scratch is in, as `vda[7]`, by disk target; where it gives none, none. */
  readonly scratchNodes: ReadonlyMap<string, string>
  /** Bases that libvirt did not confirm. */
  readonly warnings: readonly Warning[]
}

/** File systems may be frozen meanwhile, and each try takes some 50 ms. */
const MAX_PORTS_TRIED = 16
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
      const address = await begin(hypervisor, request, disks)
      return { ...(await readBack(hypervisor, request, { disks, time })), address }
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
async function begin(
  hypervisor: Hypervisor,
  request: SessionRequest,
  disks: readonly RequestedDisk[],
): Promise<SessionAddress> {
  const tracked = disks.filter(disk => disk.tracked).map(disk => disk.target)
  const { checkpoint } = request
  const checkpointXml = checkpoint === undefined ? undefined : buildCheckpointXml(checkpoint, tracked)
  const send = (place: ServerPlace) =>
    hypervisor.connection.backupBegin(request.domain.uuid, buildBackupXml(place, disks), checkpointXml, 0)
  const { socket, tcp } = request
  if (tcp === undefined) {
    await send({ socket })
    return { socket }
  }
  const { bind, host, tls } = tcp
  for (const port of tcp.ports.slice(0, MAX_PORTS_TRIED)) {
    try {
      await send({ bind, port, hasTls: tls !== undefined })
      return { host, port, tls }
    } catch (error) {
      // Nothing has begun: QEMU opens its port before anything else.
      if (!isPortTaken(error)) throw tls === undefined ? error : explainTls(host, error)
    }
  }
  throw new BackupError('E_NBD', `${bind}: no port is free to serve disks of ${request.domain.name}`, {
    why: `tried ${Math.min(tcp.ports.length, MAX_PORTS_TRIED)} ports from ${tcp.ports[0] ?? 0}`,
    hints: ['give a wider range:   remote: { ports: 10809-10999 }'],
  })
}

/** The hypervisor's own certificates: missing, unreadable for QEMU, or expired, which QEMU looks at first. */
function explainTls(host: string, error: unknown): unknown {
  const failure = libvirtFailure(error)
  if (failure === undefined || !/credential|certificate|x509|TLS/i.test(failure.message)) return error
  return new BackupError('E_LIBVIRT', `${host}: QEMU cannot serve over TLS`, {
    why: failure.message,
    hints: [
      'put ca-cert.pem, server-cert.pem and server-key.pem, readable for QEMU, where backup_tls_x509_cert_dir of its /etc/libvirt/qemu.conf says, by default /etc/pki/qemu',
      'or connect through ssh, which needs none',
    ],
    cause: failure,
  })
}

/** QEMU speaks English in every locale, and libvirt has no code for it. */
function isPortTaken(error: unknown): boolean {
  return libvirtFailure(error) !== undefined && /Failed to find an available port/.test(messageOf(error))
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
): Promise<Omit<BegunBackup, 'address'>> {
  const { domain } = request
  const xml = await hypervisor.call(connection => connection.backupXml(domain.uuid))
  const running = xml === undefined ? undefined : parseBackupXml(xml)
  if (running === undefined || !isMarked(running, request.socket)) {
    throw new BackupError('E_SOURCE_GONE', `the backup job of ${domain.name} ended as soon as it had begun`)
  }
  const warnings: Warning[] = []
  const disks: ExportedDisk[] = []
  const scratchNodes = new Map<string, string>()
  for (const asked of request.disks) {
    const found = running.disks.find(disk => disk.target === asked.target)
    if (found === undefined) {
      throw new BackupError('E_LIBVIRT', `libvirt left disk ${asked.target} of ${domain.name} out of the backup`)
    }
    if (found.index !== undefined) scratchNodes.set(asked.target, `${asked.target}[${found.index}]`)
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
  return { disks, time: tried.time, scratchNodes, warnings }
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
