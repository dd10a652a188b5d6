import type { NamedStats } from './open-directory.js'

export type EntryKind = 'file' | 'directory' | 'link' | 'special'

/** A file of the guest, as its own file system has it. */
export interface GuestEntry {
  readonly name: string
  /** The name's bytes where they are no UTF-8. */
  readonly nameBase64?: string | undefined
  readonly kind: EntryKind
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly size: number
  readonly mtimeMs: number
  /** Where a link points, in the guest's words. */
  readonly target?: string | undefined
}

export function kindOf(stats: NamedStats): EntryKind {
  if (stats.isFile()) return 'file'
  if (stats.isDirectory()) return 'directory'
  return stats.isSymbolicLink() ? 'link' : 'special'
}

export function entryOf(name: Buffer, stats: NamedStats, target: Buffer | undefined): GuestEntry {
  const { mode, uid, gid, size, mtimeMs } = stats
  const text = name.toString()
  const isText = Buffer.from(text).equals(name)
  return {
    name: text,
    ...(isText ? {} : { nameBase64: name.toString('base64') }),
    kind: kindOf(stats),
    mode,
    uid,
    gid,
    size,
    mtimeMs,
    ...(target === undefined ? {} : { target: target.toString() }),
  }
}
