import { randomUUID } from 'node:crypto'
import { chmod, mkdir, unlink } from 'node:fs/promises'
import { dirname, resolve } from 'node:path'

import type { LocalImages } from '../image/local-images.js'
import { resolveOwner } from '../image/owner.js'
import { DomainRestore } from '../jobs/restore-domain.js'
import { RestoreJob } from '../jobs/restore-job.js'
import { fileNames } from '../jobs/restore-names.js'
import { planRestore } from '../jobs/restore-plan.js'
import type { StorePort } from '../store/store-types.js'
import { firmwarePlaces } from './places.js'
import type { Session } from './session.js'
import type { Machine } from './wire.js'

/** Makes what restores are made of, as wire.ts does for everything else. */

export { fileNames, planRestore, resolveOwner }

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

export function makeRestoreJob(session: Session, store: StorePort, images: LocalImages): RestoreJob {
  return new RestoreJob({ store, images, progress: session.progress, clock: session.clock })
}

/** What our own jobs left in a domain's metadata, which a copy does not inherit. */
export async function ownNamespaces(): Promise<readonly string[]> {
  const { JOB_METADATA_URI } = await import('../libvirt/job-metadata-xml.js')
  return [JOB_METADATA_URI]
}

export async function makeDomainRestore(
  store: StorePort,
  machine: Machine,
  images: LocalImages,
): Promise<DomainRestore> {
  const { rewriteDomainXml } = await import('../libvirt/restore-xml.js')
  return new DomainRestore({
    store,
    images,
    host: machine.hypervisor.connection,
    rewrite: rewriteDomainXml,
    newUuid: randomUUID,
    makeDirectory: makePassableDirectory,
    removeFile: unlink,
    places: firmwarePlaces(machine.access.uri),
  })
}

/** With its parents. What is made here others may pass through, as QEMU's and swtpm's users must, but not list. */
export async function makePassableDirectory(path: string): Promise<void> {
  const first = await mkdir(path, { recursive: true })
  if (first === undefined) return
  for (let made = resolve(path); made.length >= resolve(first).length; made = dirname(made)) await chmod(made, 0o711)
}
