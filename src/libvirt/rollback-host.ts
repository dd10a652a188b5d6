import type { DomainDisk } from '../model/domain.js'
import type { DiskNow, DomainNow } from '../model/domain-now.js'
import type { DomainRef } from '../model/recovery-point.js'
import { parseDomainXml } from './domain-xml.js'
import type { Hypervisor } from './hypervisor.js'
import { readChain } from './image-chain.js'

/** A hypervisor, of this machine or through ssh, as a rollback needs it. */
export class RollbackHost {
  readonly #hypervisor: Hypervisor

  constructor(hypervisor: Hypervisor) {
    this.#hypervisor = hypervisor
  }

  /** Looks at a domain and its disks; changes nothing. Rejects with E_NOT_FOUND, E_LIBVIRT, E_LIBVIRT_CONNECT, E_IO. */
  async look(domain: DomainRef, signal: AbortSignal): Promise<DomainNow> {
    const info = await this.#hypervisor.lookup(domain.uuid)
    const xml = await this.#hypervisor.call(connection => connection.domainXml(info.uuid, { inactive: true }))
    const disks: DiskNow[] = []
    for (const disk of parseDomainXml(xml).disks) disks.push(await this.#lookAt(disk, signal))
    return { uuid: info.uuid, name: info.name, isOff: info.id < 0, hasManagedSave: info.hasManagedSave, disks }
  }

  async #lookAt(disk: DomainDisk, signal: AbortSignal): Promise<DiskNow> {
    const { target } = disk
    const { files } = this.#hypervisor
    const { images } = files
    const path = await this.#pathOf(disk)
    const obstacle = obstacleOf(disk)
    if (path === undefined || images === undefined || obstacle !== undefined) {
      return { target, obstacle: obstacle ?? `its source (${disk.source.kind}) is no file or device of that machine` }
    }
    const format = disk.format ?? 'raw'
    const [top, below] = await readChain(images, { path, format }, signal)
    const probed = await files.probeImage(path, format, signal)
    // A bitmap of one image does not know what the others hold, nor what was written around a qcow2.
    const isAlone = below === undefined && probed !== undefined && probed.dataFile === undefined
    return {
      target,
      obstacle: undefined,
      path,
      format,
      isBlockDevice: top?.isBlockDevice === true,
      bitmaps: isAlone ? (top?.bitmaps ?? []) : [],
    }
  }

  async #pathOf({ source }: DomainDisk): Promise<string | undefined> {
    switch (source.kind) {
      case 'file':
      case 'block':
        return source.path
      case 'volume': {
        const { pool, volume } = source
        return await this.#hypervisor.call(connection => connection.volumePath(pool, volume))
      }
      case 'none':
      case 'network':
      case 'other':
        return undefined
    }
  }
}

function obstacleOf(disk: DomainDisk): string | undefined {
  if (disk.readOnly) return 'it is read-only'
  if (disk.shareable) return 'it is shared with other domains'
  if (disk.encryption !== undefined) return `it is encrypted (${disk.encryption.format})`
  return undefined
}
