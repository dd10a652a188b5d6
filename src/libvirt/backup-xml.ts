import type { RequestedDisk } from './session-types.js'
import {
  attributeOf,
  buildXml,
  childOf,
  childrenOf,
  element,
  parseXml,
  wholeNumber,
  type XmlElement,
} from './tree-xml.js'

/** What libvirt says about the backup job that runs. */
export interface BackupDescription {
  readonly mode: string
  /** Where it serves, if on a unix socket. */
  readonly socket: string | undefined
  /** Those that take part. */
  readonly disks: readonly BackupDisk[]
}

export interface BackupDisk {
  readonly target: string
  readonly incremental: boolean
  /** The checkpoint that the bitmap starts from. */
  readonly base: string | undefined
  /** Left out by a daemon that was restarted; then it is the target. */
  readonly exportName: string
  readonly bitmap: string | undefined
  /** libvirt's number of the scratch image. */
  readonly index: number | undefined
  readonly scratch: string | undefined
}

/** A Unix socket, or a TCP port. */
export type ServerPlace =
  | { readonly socket: string }
  | { readonly bind: string; readonly port: number; readonly hasTls: boolean }

/**
 * The <domainbackup> for a pull. Modes and bases are set disk
 * by disk, so that one shape serves full, incremental and mixed jobs.
 */
export function buildBackupXml(place: ServerPlace, disks: readonly RequestedDisk[]): string {
  const server =
    'socket' in place
      ? { transport: 'unix', socket: place.socket }
      : { transport: 'tcp', name: place.bind, port: String(place.port), tls: place.hasTls ? 'yes' : undefined }
  return buildXml(
    element('domainbackup', { mode: 'pull' }, [
      element('server', server),
      element('disks', {}, disks.map(diskElement)),
    ]),
  )
}

function diskElement(disk: RequestedDisk): XmlElement {
  const incremental = disk.base !== undefined
  const attributes = {
    name: disk.target,
    backup: 'yes',
    type: disk.scratch.kind,
    backupmode: incremental ? 'incremental' : 'full',
    incremental: disk.base,
    exportname: disk.target,
    exportbitmap: incremental ? `backup-${disk.target}` : undefined,
  }
  return element('disk', attributes, [
    element('driver', { type: 'qcow2' }),
    element('scratch', { [disk.scratch.kind === 'file' ? 'file' : 'dev']: disk.scratch.path }),
  ])
}

/** The <domaincheckpoint> that begin creates; only disks whose image holds bitmaps may be in it. */
export function buildCheckpointXml(name: string, targets: readonly string[]): string {
  const disks = targets.map(target => element('disk', { name: target, checkpoint: 'bitmap' }))
  return buildXml(element('domaincheckpoint', {}, [element('name', {}, name), element('disks', {}, disks)]))
}

/** Decodes what virDomainBackupGetXMLDesc gives. Throws E_LIBVIRT. */
export function parseBackupXml(text: string): BackupDescription {
  const root = parseXml(text, 'domainbackup')
  const server = childOf(root, 'server')
  return {
    mode: attributeOf(root, 'mode') ?? 'push',
    socket: attributeOf(server, 'socket'),
    disks: childrenOf(childOf(root, 'disks'), 'disk').flatMap(parseDisk),
  }
}

function parseDisk(disk: XmlElement): BackupDisk[] {
  const target = attributeOf(disk, 'name')
  if (target === undefined || attributeOf(disk, 'backup') === 'no') return []
  const scratch = childOf(disk, 'scratch')
  return [
    {
      target,
      incremental: attributeOf(disk, 'backupmode') === 'incremental',
      base: attributeOf(disk, 'incremental'),
      exportName: attributeOf(disk, 'exportname') ?? target,
      bitmap: attributeOf(disk, 'exportbitmap'),
      index: wholeNumber(attributeOf(disk, 'index')),
      scratch: attributeOf(scratch, 'file') ?? attributeOf(scratch, 'dev'),
    },
  ]
}
