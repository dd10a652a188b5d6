import { randomUUID } from 'node:crypto'
import { chmod, lstat, mkdir, rmdir, unlink } from 'node:fs/promises'
import { join } from 'node:path'

import type { Pace } from '../base/pace.js'
import type { LocalImages } from '../image/local-images.js'
import { makeDirectory } from '../image/directory.js'
import { resolveOwner } from '../image/owner.js'
import { DomainRestore, type DomainRestorePorts } from '../jobs/restore-domain.js'
import type { ImageFactory } from '../image/image-factory.js'
import { RestoreJob } from '../jobs/restore-job.js'
import type { DiskToOpen, OpenedDisk, RollbackJob } from '../jobs/rollback-job.js'
import { fileNames } from '../jobs/restore-names.js'
import { chooseDisks, planRestore } from '../jobs/restore-plan.js'
import type { StorePort } from '../store/store-types.js'
import { firmwarePlaces, runtimeDir } from './places.js'
import type { RemotePlace } from './remote-restore-wire.js'
import type { Session } from './session.js'
import type { Machine } from './wire.js'

/** Makes what restores are made of, as wire.ts does for everything else. */

export { chooseDisks, fileNames, makeDirectory, planRestore, resolveOwner }

const NBD_CONNECTIONS = 4
/** Zeroing a large range of a slow disk takes its time. */
const NBD_REQUEST_TIMEOUT_MS = 300_000

/** Images on this machine, and NBD exports anywhere. */
export async function makeImages(): Promise<LocalImages> {
  const { LocalImages } = await import('../image/local-images.js')
  return new LocalImages({
    output: process.stdout,
    openExport: async (uri, signal) => {
      const { ExportWriter } = await import('../nbd/export-writer.js')
      const options = { exportName: '', connections: NBD_CONNECTIONS, requestTimeoutMs: NBD_REQUEST_TIMEOUT_MS }
      return await ExportWriter.open({ uri }, options, signal)
    },
  })
}

export function makeRestoreJob(
  { progress, clock }: Session,
  parts: { readonly store: StorePort; readonly images: ImageFactory; readonly pace: Pace | undefined },
): RestoreJob {
  const identify: StorePort['identify'] = (bytes, spans) => parts.store.identify(bytes, spans)
  return new RestoreJob({ ...parts, identify, progress, clock })
}

/** What our own jobs left in a domain's metadata, which a copy does not inherit. */
export async function ownNamespaces(): Promise<readonly string[]> {
  const { JOB_METADATA_URI } = await import('../libvirt/job-metadata-xml.js')
  return [JOB_METADATA_URI]
}

/** Where the files of a domain go: this machine, or the hypervisor's. */
export type DomainPlace = Pick<DomainRestorePorts, 'images' | 'makeDirectory' | 'removeFile' | 'fileExists' | 'places'>

export async function makeDomainRestore(
  store: StorePort,
  { hypervisor }: Machine,
  place: DomainPlace,
): Promise<DomainRestore> {
  const { rewriteDomainXml } = await import('../libvirt/restore-xml.js')
  return new DomainRestore({
    ...place,
    store,
    // Hours may pass before it is defined, and a connection with them.
    host: {
      lookupDomain: key => hypervisor.call(connection => connection.lookupDomain(key)),
      defineDomain: (xml, options) => hypervisor.call(connection => connection.defineDomain(xml, options)),
      createDomain: (uuid, options) => hypervisor.connection.createDomain(uuid, options),
    },
    rewrite: rewriteDomainXml,
    newUuid: randomUUID,
  })
}

export function localPlace(machine: Machine, images: LocalImages): DomainPlace {
  return {
    images,
    makeDirectory: makePassableDirectory,
    removeFile: unlink,
    fileExists: async path => (await lstat(path).catch(() => undefined)) !== undefined,
    places: firmwarePlaces(machine.access.uri),
  }
}

export function remotePlace({ images, directories, firmware }: RemotePlace): DomainPlace {
  return {
    images,
    makeDirectory: path => directories.make(path),
    removeFile: path => directories.removeFile(path),
    fileExists: path => directories.exists(path),
    places: firmware,
  }
}

/** With its parents. What is made here others may pass through, as QEMU's and swtpm's users must, but not list. */
export async function makePassableDirectory(path: string): Promise<void> {
  for (const made of await makeDirectory(path)) await chmod(made, 0o711)
}

export async function makeRollbackJob(
  session: Session,
  parts: {
    readonly store: StorePort
    readonly machine: Machine
    readonly remote: RemotePlace | undefined
    readonly pace: Pace | undefined
  },
): Promise<RollbackJob> {
  const { store, machine, remote, pace } = parts
  const { RollbackJob } = await import('../jobs/rollback-job.js')
  const { RollbackHost } = await import('../libvirt/rollback-host.js')
  return new RollbackJob({
    store,
    host: new RollbackHost(machine.hypervisor),
    openDisk: async (disk, signal) => {
      if (remote === undefined) return await openDisk(disk, store.id, signal)
      const { openRemoteDisk } = await import('./remote-restore-wire.js')
      return await openRemoteDisk(session, remote, disk, signal)
    },
    progress: session.progress,
    clock: session.clock,
    pace,
  })
}

/** Starts a qemu-nbd on the image, and connects for its extents, and to write where that is asked for. */
async function openDisk(
  { domain, target, image, bitmap, writable }: DiskToOpen,
  storeId: string,
  signal: AbortSignal,
): Promise<OpenedDisk> {
  const { QemuNbd } = await import('../nbd/qemu-nbd.js')
  const { ExportReader } = await import('../nbd/export-reader.js')
  const { ExportWriter } = await import('../nbd/export-writer.js')
  const { ExportImage } = await import('../image/export-image.js')
  const { openServedDisk } = await import('./served-disk.js')
  // One name per store and domain, which is locked: what a killed run left is used again.
  const folder = join(runtimeDir(), `rollback-${storeId.slice(0, 8)}-${domain.uuid}`)
  await mkdir(folder, { recursive: true, mode: 0o700 })
  const start = async () => {
    const served = { ...image, exportName: 'disk', bitmap, writable, socket: join(folder, `${target}.sock`) }
    const server = await QemuNbd.start(served, signal)
    const { socket } = server
    const common = { exportName: 'disk', requestTimeoutMs: NBD_REQUEST_TIMEOUT_MS }
    return {
      openReader: () => ExportReader.open({ socket }, { ...common, connections: 1, dirtyBitmap: bitmap }, signal),
      openWriter: async (size: number) => {
        const writer = await ExportWriter.open({ socket }, { ...common, connections: NBD_CONNECTIONS }, signal)
        return new ExportImage(image.path, size, writer)
      },
      stop: () => server.stop(),
      [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
    }
  }
  return await openServedDisk({ writable }, start, [
    { [Symbol.asyncDispose]: () => rmdir(folder).catch(() => undefined) },
  ])
}
