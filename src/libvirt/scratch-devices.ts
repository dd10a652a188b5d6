import { constants } from 'node:fs'
import { type FileHandle, open, readdir, readFile, realpath, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'

import { BackupError, messageOf } from '../base/errors.js'
import type { DomainDescription } from '../model/domain.js'
import { formatSize } from '../model/size.js'
import { runningBackup } from './backup-job.js'
import { parseDomainXml } from './domain-xml.js'
import { type Hypervisor, isDomainGone } from './hypervisor.js'
import type { ScratchPlace } from './session-types.js'

/** Less holds a qcow2 image and hardly anything else. */
const MIN_DEVICE_BYTES = 16 * 1024 ** 2
const SECTOR_BYTES = 512
/** What is looked at on either end. LVM clears as much of a new volume; tables of partitions, file systems and images begin in it. */
const LOOK_BYTES = 4096
/** In the last 4 KiB: QEMU writes from the beginning, and is stopped before it gets there. */
const MARK = 'virtvault scratch device: what is on it is worth nothing\n'

/**
 * Block devices that a run may overwrite, held until disposed of. They are open with
 * O_EXCL: the kernel lets nobody else claim them (mount, LVM, mkfs, another
 * run) for so long, and forgets about it when this process dies.
 */
export class ScratchDevices implements AsyncDisposable {
  readonly #held: FileHandle[] = []

  private constructor() {
    // Made by claim().
  }

  /**
   * Claims the block devices among `places`. Rejects with E_UNSUPPORTED where libvirt runs on another
   * machine, E_CONFIG for what is no block device, E_NO_SPACE for one that is too small, E_LOCKED
   * where somebody uses it, E_REFUSED where it is a disk of a domain, or holds something that no backup left there.
   */
  static async claim(hypervisor: Hypervisor, places: Iterable<ScratchPlace>): Promise<ScratchDevices> {
    const paths = [...places].flatMap(({ kind, path }) => (kind === 'block' ? [path] : []))
    const devices = new ScratchDevices()
    if (paths.length === 0) return devices
    if (hypervisor.files.reach !== 'local') {
      throw new BackupError('E_UNSUPPORTED', `${hypervisor.uri}: scratch on block devices of another machine`, {
        why: 'nothing there would keep two backups, or a file system, from using the same device',
        hints: ['use a directory of that machine:   --scratch-dir DIR', 'or run the backup on that machine'],
      })
    }
    try {
      const owners = await ownersOfDevices(hypervisor)
      for (const path of paths) await devices.#claim(path, owners)
      return devices
    } catch (error) {
      await devices[Symbol.asyncDispose]()
      throw error
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const file of this.#held.splice(0)) await file.close()
  }

  async #claim(path: string, owners: ReadonlyMap<string, DeviceUse>): Promise<void> {
    const number = await numberOf(path)
    for (const one of await relativesOf(number)) {
      const use = owners.get(one)
      if (use !== undefined) throw inUse(path, use)
    }
    const file = await openAlone(path)
    this.#held.push(file)
    const size = await sizeOf(number)
    if (size < MIN_DEVICE_BYTES) {
      throw new BackupError('E_NO_SPACE', `${path} is too small for scratch: ${formatSize(size)}`, {
        hints: [`it needs ${formatSize(MIN_DEVICE_BYTES)}, and room for what the domain overwrites during a backup`],
      })
    }
    if (!(await isWorthless(file, size))) {
      throw new BackupError('E_REFUSED', `${path} holds something, and would be overwritten`, {
        why: 'it neither begins with zeros, as a new volume does, nor has it been a scratch device before',
        hints: [
          `see what it is:   blkid -p ${path}`,
          `if nobody needs that:   wipefs -a ${path}; blkdiscard -z ${path}`,
        ],
      })
    }
    const mark = Buffer.alloc(LOOK_BYTES)
    mark.write(MARK)
    await file.write(mark, 0, mark.length, size - LOOK_BYTES)
    await file.sync()
  }
}

/** Of a block device of this machine; undefined where there is none. */
export async function blockDeviceSize(path: string): Promise<number | undefined> {
  const found = await stat(path).catch(() => undefined)
  return found?.isBlockDevice() === true ? await sizeOf(deviceNumber(found.rdev)) : undefined
}

const HINTS = ['give a block device of its own, such as a logical volume', 'or a directory:   --scratch-dir DIR']

async function numberOf(path: string): Promise<string> {
  const found = await stat(path).catch((error: unknown) => {
    throw new BackupError('E_CONFIG', `the scratch device ${path} is not there`, {
      why: messageOf(error),
      hints: HINTS,
    })
  })
  if (!found.isBlockDevice()) throw new BackupError('E_CONFIG', `${path} is not a block device`, { hints: HINTS })
  return deviceNumber(found.rdev)
}

async function openAlone(path: string): Promise<FileHandle> {
  try {
    return await open(path, constants.O_RDWR | constants.O_EXCL)
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'EBUSY') {
      throw new BackupError('E_LOCKED', `the scratch device ${path} is in use`, {
        why: 'it is mounted, part of a volume group or an array, or the scratch of another backup',
        hints: [`see by whom:   lsblk ${path}`, 'domains that are backed up at once need devices of their own'],
        cause: error,
      })
    }
    throw new BackupError('E_CONFIG', `the scratch device ${path} cannot be opened`, {
      why: messageOf(error),
      hints: HINTS,
    })
  }
}

type DeviceUse =
  | { readonly kind: 'disk'; readonly domain: string; readonly target: string }
  | { readonly kind: 'scratch'; readonly domain: string; readonly target: string }

function inUse(path: string, { kind, domain, target }: DeviceUse): BackupError {
  if (kind === 'disk') {
    return new BackupError('E_REFUSED', `${path} is no scratch device: it is disk ${target} of ${domain}`, {
      hints: ['give a device that no domain uses'],
    })
  }
  // The run may be dead, and its lock gone: its job is not.
  return new BackupError(
    'E_LOCKED',
    `${path} is the scratch of disk ${target} of ${domain}, which is being backed up`,
    {
      hints: ['run the backup when that has ended', `or end it:   virtvault backup abort ${domain}`],
    },
  )
}

/** By device number: what the domains of this libvirt have on block devices, running or not, in backing chains too. */
async function ownersOfDevices(hypervisor: Hypervisor): Promise<ReadonlyMap<string, DeviceUse>> {
  const owners = new Map<string, DeviceUse>()
  const note = async (path: string | undefined, use: DeviceUse) => {
    const found = path === undefined ? undefined : await stat(path).catch(() => undefined)
    if (found?.isBlockDevice() === true) owners.set(deviceNumber(found.rdev), use)
  }
  for (const { uuid, name, id } of await hypervisor.listDomains()) {
    for (const description of await descriptionsOf(hypervisor, uuid)) {
      for (const { target, source, backingChain } of description.disks) {
        for (const one of [source, ...backingChain.map(layer => layer.source)]) {
          const path = await pathOf(hypervisor, one)
          await note(path, { kind: 'disk', domain: name, target })
        }
      }
    }
    if (id < 0) continue
    const job = await runningBackup(hypervisor, { uuid, name })
    for (const { target, scratch } of job?.disks ?? []) await note(scratch, { kind: 'scratch', domain: name, target })
  }
  return owners
}

/** As it runs and as it is defined; one that has gone meanwhile has nothing. */
async function descriptionsOf(hypervisor: Hypervisor, uuid: string): Promise<readonly DomainDescription[]> {
  try {
    const { inactive, live } = await hypervisor.domainXml(uuid)
    return [inactive, ...(live === undefined ? [] : [live])].map(parseDomainXml)
  } catch (error) {
    if (isDomainGone(error)) return []
    throw error
  }
}

/** Where it is on this machine; a volume that its pool does not know now is nowhere. */
async function pathOf(
  hypervisor: Hypervisor,
  source: DomainDescription['disks'][number]['source'],
): Promise<string | undefined> {
  if (source.kind === 'file' || source.kind === 'block') return source.path
  if (source.kind !== 'volume') return undefined
  return await hypervisor.call(connection => connection.volumePath(source.pool, source.volume)).catch(() => undefined)
}

/** As the kernel writes it: `253:4`. */
function deviceNumber(rdev: number): string {
  const high = Math.floor(rdev / 2 ** 32)
  const low = rdev % 2 ** 32
  const major = ((high & 0xfffff000) >>> 0) + ((low >>> 8) & 0xfff)
  const minor = ((low >>> 12) & 0xfff00) + (low & 0xff)
  return `${major}:${minor}`
}

async function sizeOf(number: string): Promise<number> {
  return Number(await readFile(join('/sys/dev/block', number, 'size'), 'utf8')) * SECTOR_BYTES
}

/** The device, its partitions, and the disk that it is a partition of. */
async function relativesOf(number: string): Promise<readonly string[]> {
  const folder = await realpath(join('/sys/dev/block', number))
  const numberIn = (below: string) => readFile(join(below, 'dev'), 'utf8').then(text => text.trim())
  const isPartition = (below: string) =>
    stat(join(below, 'partition')).then(
      () => true,
      () => false,
    )
  const relatives = [number]
  if (await isPartition(folder)) relatives.push(await numberIn(dirname(folder)))
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    const below = join(folder, entry.name)
    if (entry.isDirectory() && (await isPartition(below))) relatives.push(await numberIn(below))
  }
  return relatives
}

/** New, or used for scratch before. */
async function isWorthless(file: FileHandle, size: number): Promise<boolean> {
  const look = async (offset: number) => {
    const bytes = Buffer.alloc(LOOK_BYTES)
    const { bytesRead } = await file.read(bytes, 0, LOOK_BYTES, offset)
    return bytes.subarray(0, bytesRead)
  }
  if ((await look(size - LOOK_BYTES)).toString('latin1', 0, MARK.length) === MARK) return true
  return (await look(0)).every(byte => byte === 0)
}
