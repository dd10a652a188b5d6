import type { OfferedDisk } from '../jobs/serve-job.js'
import { shortId } from '../model/point-ref.js'
import type { RecoveryPoint } from '../model/recovery-point.js'
import { formatSize } from '../model/size.js'
import type { Envelope } from './base-command.js'
import { EXIT } from './exit-codes.js'
import { inSeconds, plural } from './output.js'
import { printable } from './printable.js'

/** How clients reach the server. */
export type ServedAt =
  | { readonly kind: 'unix'; readonly path: string }
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number; readonly tls: boolean }

/** As libnbd, QEMU and nbdkit read it. */
export function exportUri(at: ServedAt, exportName: string): string {
  const name = encodeURIComponent(exportName).replaceAll('%40', '@').replaceAll('%3A', ':')
  if (at.kind === 'unix') return `nbd+unix:///${name}?socket=${encodeURIComponent(at.path).replaceAll('%2F', '/')}`
  const host = at.host.includes(':') ? `[${at.host}]` : at.host
  return `${at.tls ? 'nbds' : 'nbd'}://${host}:${at.port}/${name}`
}

/** What users paste. */
export function exportLines(point: RecoveryPoint, disks: readonly OfferedDisk[], at: ServedAt): string[] {
  const name = `${point.domain.name}@${shortId(point.id)}`
  return [
    printable(`Serving ${plural(disks.length, 'disk')} of ${name}, read-only.`),
    ...disks.flatMap(disk => {
      const uri = exportUri(at, disk.exportName)
      const file = `${disk.target}.qcow2`
      return [
        '',
        printable(`${disk.target}  ${formatSize(disk.size)}  ${disk.exportName}`),
        `  ${uri}`,
        ...commandLines(uri, file, at).map(line => `  ${line}`),
      ]
    }),
  ]
}

/** What users paste where the whole store is served. */
export function storeExportLines(count: number, example: string | undefined, at: ServedAt): string[] {
  return [
    `Serving ${plural(count, 'disk')} of all recovery points, read-only. New points appear by themselves.`,
    `  nbdinfo --list ${shellQuoted(exportUri(at, ''))}`,
    ...(example === undefined ? [] : [`  nbdcopy --progress ${shellQuoted(exportUri(at, example))} vda.raw`]),
  ].map(printable)
}

/** The document of an export of a store that has ended. */
export function storeExportDocument(outcome: {
  readonly at: ServedAt
  readonly durationMs: number
  readonly failedReads: number
}): Envelope {
  const isSound = outcome.failedReads === 0
  return {
    schema: 'virtvault/export_all/1',
    ok: isSound,
    status: isSound ? 'success' : 'partial',
    exit: isSound ? EXIT.ok : EXIT.damage,
    seconds: inSeconds(outcome.durationMs),
    failed_reads: outcome.failedReads,
    uri: exportUri(outcome.at, ''),
  }
}

function commandLines(uri: string, file: string, at: ServedAt): string[] {
  const quoted = shellQuoted(uri)
  // QEMU takes certificates as an object only, so its line would not be one to paste.
  const isTls = at.kind === 'tcp' && at.tls
  return [
    `nbdinfo ${quoted}`,
    `nbdcopy --progress ${quoted} ${shellQuoted(file.replace(/qcow2$/, 'raw'))}`,
    ...(isTls ? [] : [`qemu-img convert -p -W -m 8 -O qcow2 ${quoted} ${shellQuoted(file)}`]),
    ...(isTls ? [] : [`qemu-img create -f qcow2 -F raw -b ${quoted} ${shellQuoted(`overlay-${file}`)}`]),
  ]
}

function shellQuoted(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", String.raw`'\''`)}'`
}

/** The one line that programs read from stderr when the server is up. */
export function exportEvent(point: RecoveryPoint, disks: readonly OfferedDisk[], at: ServedAt): string {
  return JSON.stringify({ event: 'serving', point: point.id, disks: diskDocuments(disks, at) })
}

export interface ExportOutcome {
  readonly point: RecoveryPoint
  readonly disks: readonly OfferedDisk[]
  readonly at: ServedAt
  readonly durationMs: number
  readonly failedReads: number
}

/** The document of an export that has ended; reads that failed are exit 7. */
export function exportDocument(outcome: ExportOutcome): Envelope {
  const isSound = outcome.failedReads === 0
  return {
    schema: 'virtvault/export/1',
    ok: isSound,
    status: isSound ? 'success' : 'partial',
    exit: isSound ? EXIT.ok : EXIT.damage,
    domain: outcome.point.domain.name,
    uuid: outcome.point.domain.uuid,
    point: outcome.point.id,
    seconds: inSeconds(outcome.durationMs),
    failed_reads: outcome.failedReads,
    disks: diskDocuments(outcome.disks, outcome.at),
  }
}

function diskDocuments(disks: readonly OfferedDisk[], at: ServedAt): object[] {
  return disks.map(disk => ({
    target: disk.target,
    virtual_bytes: disk.size,
    export: disk.exportName,
    uri: exportUri(at, disk.exportName),
  }))
}
