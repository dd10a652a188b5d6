import type { FoundFileSystem } from '../model/file-system.js'
import { formatSize } from '../model/size.js'
import type { GuestEntry } from '../files/guest-entry.js'
import { formatLocalTime, renderRows, renderTable } from './output.js'
import { printable } from './printable.js'

export type DiskFileSystem = FoundFileSystem & { readonly disk: string | undefined }

const LETTERS = { file: '-', directory: 'd', link: 'l', special: 's' } as const

/** What is on the disks, and how to name it. */
export function fileSystemLines(found: readonly DiskFileSystem[]): string[] {
  if (found.length === 0) return ['No file system was recognised.']
  const rows = found.map(({ disk, place, type, size, label }) => [
    disk ?? '-',
    place.kind === 'partition'
      ? `--partition ${place.number}`
      : place.kind === 'volume'
        ? `--volume ${place.name}`
        : '-',
    type ?? 'unknown',
    size === undefined ? '-' : formatSize(size),
    label ?? '',
  ])
  const titles = ['DISK', 'WHERE', 'TYPE', 'SIZE', 'LABEL']
  return renderTable(
    titles.map(title => ({ title, align: title === 'SIZE' ? ('right' as const) : undefined })),
    rows,
  )
}

export function fileSystemDocument({ disk, place, type, size, label }: DiskFileSystem): object {
  return {
    disk: disk ?? null,
    partition: place.kind === 'partition' ? place.number : null,
    volume: place.kind === 'volume' ? place.name : null,
    offset: place.kind === 'partition' ? place.offset : place.kind === 'disk' ? 0 : null,
    bytes: size ?? null,
    type: type ?? null,
    label: label ?? null,
  }
}

/** One line per entry: names alone, directories with a slash; or all that is known. */
export function entryLines(entries: readonly GuestEntry[], isLong: boolean): string[] {
  if (!isLong) return entries.map(entry => printable(`${entry.name}${entry.kind === 'directory' ? '/' : ''}`))
  const rows = entries.map(entry => [
    `${LETTERS[entry.kind]}${permissions(entry.mode)}`,
    `${entry.uid}:${entry.gid}`,
    String(entry.size),
    formatLocalTime(entry.mtimeMs),
    entry.target === undefined ? entry.name : `${entry.name} -> ${entry.target}`,
  ])
  return renderRows(rows, [2])
}

export function entryDocument(entry: GuestEntry): object {
  return {
    name: entry.name,
    ...(entry.nameBase64 === undefined ? {} : { name_base64: entry.nameBase64 }),
    kind: entry.kind,
    mode: (entry.mode & 0o7777).toString(8).padStart(4, '0'),
    uid: entry.uid,
    gid: entry.gid,
    bytes: entry.size,
    modified: timeOf(entry.mtimeMs),
    target: entry.target ?? null,
  }
}

/** A guest may date its files as it likes. */
function timeOf(milliseconds: number): string | null {
  const date = new Date(milliseconds)
  return Number.isNaN(date.getTime()) ? null : date.toISOString()
}

function permissions(mode: number): string {
  const letters = Array.from('rwxrwxrwx', letter => letter).map((letter, bit) =>
    (mode & (0o400 >> bit)) === 0 ? '-' : letter,
  )
  if ((mode & 0o4000) !== 0) letters[2] = letters[2] === 'x' ? 's' : 'S'
  if ((mode & 0o2000) !== 0) letters[5] = letters[5] === 'x' ? 's' : 'S'
  if ((mode & 0o1000) !== 0) letters[8] = letters[8] === 'x' ? 't' : 'T'
  return letters.join('')
}
