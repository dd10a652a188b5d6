import { join, resolve } from 'node:path'

import { BackupError, errorCodeOf } from '../base/errors.js'
import type { ImageFactory } from '../image/image-factory.js'
import type { RestoredNetwork, RestoredSource, RestoredXml, RestoreXmlOptions } from '../libvirt/restore-xml.js'
import type { PointBlob, RecoveryPoint } from '../model/recovery-point.js'
import type { NativeVirtConnection } from '../native/virt.js'
import type { StorePort } from '../store/store-types.js'
import { pointName } from './restore-damage.js'
import { fileNames } from './restore-names.js'
import type { RestorePlan } from './restore-plan.js'

export interface DomainRestorePorts {
  readonly store: Pick<StorePort, 'readBlob'>
  readonly images: ImageFactory
  readonly host: Pick<NativeVirtConnection, 'lookupDomain' | 'defineDomain' | 'createDomain'>
  /** `rewriteDomainXml` of libvirt/. */
  readonly rewrite: (xml: string, options: RestoreXmlOptions) => RestoredXml
  readonly newUuid: () => string
  /** With its parents; fine where it exists. Closed to others. */
  readonly makeDirectory: (path: string) => Promise<void>
  readonly removeFile: (path: string) => Promise<void>
  readonly fileExists: (path: string) => Promise<boolean>
  readonly places: FirmwarePlaces
}

/** Where libvirt of this host keeps what belongs to a domain beside its disks. */
export interface FirmwarePlaces {
  /** `/var/lib/libvirt/qemu/nvram` as a rule. */
  readonly nvram: string
  /** `/var/lib/libvirt/swtpm` as a rule. */
  readonly swtpm: string
}

export interface DomainRestoreRequest {
  readonly plan: RestorePlan
  /** The original's unless given. */
  readonly name?: string | undefined
  readonly uuid: 'keep' | 'new'
  readonly macs: 'keep' | 'new'
  readonly network: RestoredNetwork
  /** Namespaces of our own metadata, which a copy does not inherit. */
  readonly ownNamespaces: readonly string[]
  /** By target: exports that the images are overlays on. */
  readonly backing?: ReadonlyMap<string, NonNullable<RestoredSource['backing']>> | undefined
}

/** All that can be found out before the disks are restored. */
export interface PreparedDomain {
  readonly name: string
  readonly uuid: string
  readonly xml: string
  readonly notes: readonly string[]
  readonly files: readonly FirmwareFile[]
  readonly force: boolean
}

interface FirmwareFile {
  readonly blob: PointBlob
  readonly directory: string
  readonly path: string
}

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/

/**
 * Makes a restored domain known to libvirt: prepare() before the disks, so
 * that what cannot work is refused before hours of copying; finish() after.
 */
export class DomainRestore {
  readonly #ports: DomainRestorePorts

  constructor(ports: DomainRestorePorts) {
    this.#ports = ports
  }

  /**
   * Rejects with E_EXISTS where the host has a domain of that name or UUID,
   * E_NOT_FOUND where the point has no XML, E_DAMAGED, E_LIBVIRT, E_UNSUPPORTED
   * where a disk goes to what a domain cannot use.
   */
  async prepare(request: DomainRestoreRequest): Promise<PreparedDomain> {
    const { plan } = request
    const { point } = plan
    const name = request.name ?? point.domain.name
    const uuid = request.uuid === 'new' ? this.#ports.newUuid() : point.domain.uuid
    if (!UUID.test(uuid)) throw new BackupError('E_DAMAGED', `${pointName(point)} names no proper UUID`)
    await this.#refuseClash(point, name, uuid)

    const files = await this.#firmwareFiles(point, { name, uuid })
    if (!plan.force) await this.#refuseTaken(files)
    const nvram = files.find(file => file.blob.name === 'nvram')?.path
    const { xml, notes } = this.#ports.rewrite(await readDefinition(this.#ports.store, point), {
      name,
      uuid,
      macs: request.macs,
      network: request.network,
      disks: new Map(
        plan.disks.map(({ disk, spec }) => [
          disk.target,
          { ...sourceOf(spec), backing: request.backing?.get(disk.target) },
        ]),
      ),
      nvram,
      bootFiles: new Map(files.map(({ blob, path }) => [blob.name, path])),
      ownNamespaces: request.ownNamespaces,
    })
    return { name, uuid, xml, notes: [...notes, ...notesOn(point, request)], files, force: plan.force }
  }

  /**
   * Puts NVRAM and TPM state in place and defines the domain; starts it if
   * asked. Where defining fails, what was put in place is removed; where
   * starting fails, the domain stays defined.
   */
  async finish(prepared: PreparedDomain, then: 'define' | 'start'): Promise<void> {
    const { host } = this.#ports
    // Before it is defined: nobody must start it without what its guest keeps there.
    const placed = await this.#placeFiles(prepared)
    try {
      await host.defineDomain(prepared.xml, { validate: true })
    } catch (error) {
      await this.#remove(placed)
      throw error
    }
    if (then === 'start') await host.createDomain(prepared.uuid, {})
  }

  /** libvirt takes them as they are when the domain starts, and gives them their owner. */
  async #placeFiles(prepared: PreparedDomain): Promise<readonly string[]> {
    const { store, images, makeDirectory } = this.#ports
    const placed: string[] = []
    try {
      for (const { blob, directory, path } of prepared.files) {
        await makeDirectory(directory)
        const bytes = await store.readBlob(blob)
        await using file = await images.createFile({ path, bytes, force: prepared.force })
        await file.commit()
        placed.push(path)
      }
      return placed
    } catch (error) {
      await this.#remove(placed)
      throw error
    }
  }

  async #remove(paths: readonly string[]): Promise<void> {
    for (const path of paths) await this.#ports.removeFile(path)
  }

  async #refuseClash(point: RecoveryPoint, name: string, uuid: string): Promise<void> {
    for (const [what, key] of [
      ['name', name],
      ['UUID', uuid],
    ] as const) {
      const found = await this.#lookup(key)
      if (found === undefined) continue
      throw new BackupError('E_EXISTS', `this host has a domain with the ${what} ${key} already`, {
        why: `It is ${found.name} (${found.uuid}); a restore never changes a domain that exists.`,
        hints: [
          `a copy beside it:   virtvault restore ${pointName(point)} --to DIR --define --name ${point.domain.name}-restored --new-uuid --network none`,
          `its own disks back to that state, once it is shut off:   virtvault restore ${pointName(point)} --in-place`,
          `or remove the original first, keeping its files:   virsh undefine --keep-nvram --keep-tpm --checkpoints-metadata ${found.name}`,
        ],
      })
    }
  }

  async #lookup(key: string): Promise<{ readonly name: string; readonly uuid: string } | undefined> {
    try {
      return await this.#ports.host.lookupDomain(key)
    } catch (error) {
      if (errorCodeOf(error) === 'E_NOT_FOUND') return undefined
      throw error
    }
  }

  /** What finish() would stop at after hours of copying. */
  async #refuseTaken(files: readonly FirmwareFile[]): Promise<void> {
    for (const { blob, path } of files) {
      if (!(await this.#ports.fileExists(path))) continue
      throw new BackupError('E_EXISTS', `${path} exists`, {
        why: `The ${blob.name.startsWith('tpm/') ? 'TPM state' : blob.name} of the restored domain goes there; what is there may belong to another one.`,
        hints: [
          'replace it with --force, where nothing needs it any more',
          'or restore under another name:   --name NAME --new-uuid',
        ],
      })
    }
  }

  /**
   * The paths are this host's: nothing of the stored paths is used (I10). A
   * firmware image comes with a package, which may be newer here: the stored
   * one stands in only where the host has none.
   */
  async #firmwareFiles(
    point: RecoveryPoint,
    domain: { readonly name: string; readonly uuid: string },
  ): Promise<FirmwareFile[]> {
    const { nvram, swtpm } = this.#ports.places
    const [safeName = 'domain'] = fileNames([domain.name], `domain-${domain.uuid}`)
    const files: FirmwareFile[] = []
    for (const blob of point.blobs) {
      if (blob.name === 'nvram') files.push({ blob, directory: nvram, path: join(nvram, `${safeName}_VARS.fd`) })
      const hasItsOwn = blob.name === 'loader' && blob.path !== undefined && (await this.#ports.fileExists(blob.path))
      if (BOOT_FILES.has(blob.name) && !hasItsOwn) {
        files.push({ blob, directory: nvram, path: join(nvram, `${safeName}.${blob.name}`) })
      }
      // swtpm's state is found by UUID: a copy without it starts with an empty TPM.
      const place = tpmPlace(swtpm, domain.uuid, blob.name)
      if (place !== undefined) files.push({ blob, ...place })
    }
    return files
  }
}

/** Read by QEMU when the domain starts, and named in its definition. */
const BOOT_FILES: ReadonlySet<string> = new Set(['kernel', 'initrd', 'dtb', 'loader'])

/** Where a domain's swtpm looks for a file that a point calls `tpm/VERSION/NAME`; undefined of other names (I10). */
export function tpmPlace(
  swtpmDir: string,
  uuid: string,
  name: string,
): { readonly directory: string; readonly path: string } | undefined {
  const [, version, file] = /^tpm\/(tpm2|tpm1\.2)\/([A-Za-z0-9][A-Za-z0-9._-]*)$/.exec(name) ?? []
  if (version === undefined || file === undefined) return undefined
  const directory = join(swtpmDir, uuid, version)
  return { directory, path: join(directory, file) }
}

/** The domain's persistent definition, or the live one where it has none. Rejects with E_NOT_FOUND, E_DAMAGED. */
export async function readDefinition(store: Pick<StorePort, 'readBlob'>, point: RecoveryPoint): Promise<string> {
  const byName = (name: string) => point.blobs.find(blob => blob.name === name)
  const blob = byName('domain-inactive.xml') ?? byName('domain-live.xml')
  if (blob === undefined) throw new BackupError('E_NOT_FOUND', `${pointName(point)} has no domain XML`)
  return new TextDecoder('utf-8', { fatal: true }).decode(await store.readBlob(blob))
}

/** libvirt takes absolute paths only. */
function sourceOf(spec: RestorePlan['disks'][number]['spec']): RestoredSource {
  switch (spec.kind) {
    case 'qcow2':
    case 'raw':
      return { kind: 'file', path: resolve(spec.path), format: spec.kind }
    case 'device':
      return { kind: 'block', path: resolve(spec.path), format: 'raw' }
    case 'export':
    case 'stream':
      throw new BackupError('E_UNSUPPORTED', `a domain cannot be defined on a disk restored to a ${spec.kind}`, {
        hints: ['Restore to a directory, a pool or block devices.'],
      })
  }
}

function notesOn(point: RecoveryPoint, request: DomainRestoreRequest): string[] {
  const notes = point.skipped.map(({ target, reason }) => `Disk ${target} is not in the point: ${reason}`)
  if (request.plan.disks.some(({ spec }) => spec.kind === 'qcow2' && spec.dataFile !== undefined)) {
    notes.push(
      'libvirt before 10.10 opens its images to QEMU, not their data files: AppArmor or SELinux must be told of those.',
    )
  }
  const hasTpm = point.blobs.some(blob => blob.name.startsWith('tpm/'))
  if (hasTpm && request.uuid === 'new') notes.push('It has the TPM of the original: keys sealed there open in both.')
  if (request.uuid === 'new' && request.macs === 'keep' && request.network.kind !== 'none') {
    notes.push('It has the MAC addresses of the original: both must not run in one network.')
  }
  return notes
}
