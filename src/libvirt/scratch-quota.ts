import { execFile } from 'node:child_process'
import { readFile, realpath } from 'node:fs/promises'

/**
 * What quotas leave of a directory's file system. statfs sees those of
 * projects (ext4, XFS) and no others. Where a scratch file meets a quota, QEMU does not
 * pause the guest, as for want of space: it gives it I/O errors.
 */
export type QuotaRoom =
  | { readonly kind: 'none' }
  | { readonly kind: 'known'; readonly bytes: number }
  /** There may be one, of QEMU's user or group. */
  | { readonly kind: 'unknown'; readonly mount: string }

/** Of users and groups, among the options of a mount; what XFS and ext4 call them. */
const QUOTA_OPTIONS = /(^|,)(quota|uquota|gquota|usrquota|grpquota|usrjquota=[^,]+|grpjquota=[^,]+)(,|$)/

/** Of a directory that is there. */
export async function quotaRoomOf(folder: string): Promise<QuotaRoom> {
  const path = await realpath(folder).catch(() => undefined)
  const mounts = await readFile('/proc/self/mountinfo', 'utf8').catch(() => '')
  const mount = path === undefined ? undefined : mountOf(path, mounts)
  if (path === undefined || mount === undefined) return { kind: 'none' }
  if (mount.type === 'btrfs') return await btrfsRoom(path, mount.path)
  return QUOTA_OPTIONS.test(mount.options) ? { kind: 'unknown', mount: mount.path } : { kind: 'none' }
}

interface Mount {
  readonly path: string
  readonly type: string
  /** Of the file system, not of this mount of it. */
  readonly options: string
}

/** The file system that `path` is on, by what /proc/self/mountinfo says; of several on one place the last. */
export function mountOf(path: string, mountinfo: string): Mount | undefined {
  let found: Mount | undefined
  for (const line of mountinfo.split('\n')) {
    const [own = '', below = ''] = line.split(' - ')
    const place = unescapePath(own.split(' ')[4] ?? '')
    const [type = '', , options = ''] = below.split(' ')
    const isAbove = place !== '' && (path === place || path.startsWith(place === '/' ? '/' : `${place}/`))
    if (isAbove && place.length >= (found?.path.length ?? 0)) found = { path: place, type, options }
  }
  return found
}

function unescapePath(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(parseInt(octal, 8)))
}

async function btrfsRoom(path: string, mount: string): Promise<QuotaRoom> {
  // Figures are those of the last commit, hence --sync.
  const { code, stdout, stderr } = await run('btrfs', ['qgroup', 'show', '--raw', '--sync', '-reF', path])
  if (code === 'ENOENT') return { kind: 'unknown', mount }
  if (code !== 0) return /quota not enabled|quotas? not/i.test(stderr) ? { kind: 'none' } : { kind: 'unknown', mount }
  const bytes = leastRoom(stdout)
  return bytes === undefined ? { kind: 'none' } : { kind: 'known', bytes }
}

/** Of the groups that `btrfs qgroup show -re` lists: `0/256  rfer  excl  max_rfer  max_excl`. */
export function leastRoom(table: string): number | undefined {
  const rooms = table.split('\n').flatMap(line => {
    const [group = '', rfer, excl, maxRfer, maxExcl] = line.trim().split(/\s+/)
    if (!/^\d+\/\d+$/.test(group)) return []
    return [Number(maxRfer) - Number(rfer), Number(maxExcl) - Number(excl)].filter(room => Number.isSafeInteger(room))
  })
  return rooms.length === 0 ? undefined : Math.max(0, Math.min(...rooms))
}

function run(
  program: string,
  args: readonly string[],
): Promise<{ readonly code: number | string; readonly stdout: string; readonly stderr: string }> {
  return new Promise(done => {
    const env = { LC_ALL: 'C', PATH: '/usr/sbin:/usr/bin:/sbin:/bin' }
    execFile(program, args, { env, timeout: 30_000 }, (error, stdout, stderr) => {
      done({ code: error === null ? 0 : (error.code ?? 1), stdout, stderr })
    })
  })
}
