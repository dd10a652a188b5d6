import { readFile } from 'node:fs/promises'

import { BackupError, messageOf } from '../base/errors.js'
import type { DomainDescription } from '../model/domain.js'
import type { QemuUser } from './capabilities-xml.js'
import { type DomainFiles, type FileReader, missing, readDomainFiles, type StateOfFiles } from './domain-files.js'
import { type ImageTools, LOCAL_IMAGES, sshImages } from './image-tools.js'
import { decodeInfo, infoArguments, probeImage, type ProbedImage } from './image-probe.js'
import { exists, freeSpaceFor, removeLeftovers } from './local-files.js'
import { filesOf, makeRunPlaces, removeRunPlaces, type RunPlaces } from './run-places.js'
import type { SshLink } from './ssh-link.js'

/**
 * The files of the machine that libvirt runs on, as far as they can be
 * reached: a path of a domain means something only there.
 */
export interface HostFiles {
  /** `local`: it is this machine. `none`: there is only libvirt to talk to. */
  readonly reach: 'local' | 'ssh' | 'none'
  /** Aborted when the present way to them is lost, and with it whatever runs over it; undefined where there is none to lose. */
  readonly lost: AbortSignal | undefined
  /** What opens images; undefined where nobody does. */
  readonly images: ImageTools | undefined
  /** Makes the directories of a run, closed to all but QEMU's user. Rejects with E_CONFIG. */
  makeRunPlaces(places: RunPlaces, qemuUser: QemuUser | undefined): Promise<void>
  /** Removes what a run made; what is missing is fine. */
  removeRunPlaces(files: readonly string[]): Promise<void>
  /** Removes files and sockets of a run; says what could not be removed. */
  removeLeftovers(paths: readonly string[]): Promise<readonly string[]>
  /** Those of `paths` where something lies. */
  taken(paths: readonly string[]): Promise<readonly string[]>
  /** Free bytes where these files are or will be, of the fullest place; undefined where that cannot be told. */
  freeSpace(files: readonly string[]): Promise<number | undefined>
  /** UEFI variables and the like; what cannot be read is a warning. */
  domainFiles(domain: DomainDescription, state: StateOfFiles): Promise<DomainFiles>
  /** A small file of text; undefined where it is not there, or not for us. */
  readText(path: string): Promise<string | undefined>
  /** undefined where it cannot be looked at. */
  probeImage(path: string, format: string, signal: AbortSignal): Promise<ProbedImage | undefined>
}

export const LOCAL_FILES: HostFiles = {
  reach: 'local',
  lost: undefined,
  images: LOCAL_IMAGES,
  makeRunPlaces,
  removeRunPlaces,
  removeLeftovers,
  taken: async paths => {
    const found: string[] = []
    for (const path of paths) if (await exists(path)) found.push(path)
    return found
  },
  freeSpace: freeSpaceFor,
  domainFiles: readDomainFiles,
  readText: path => readFile(path, 'utf8').catch(() => undefined),
  probeImage,
}

const OUT_OF_REACH = 'it is on another machine that is reached without ssh'
const outOfReach: FileReader = {
  read: () => Promise.reject(new Error(OUT_OF_REACH)),
  list: () => Promise.reject(new Error(OUT_OF_REACH)),
}

/** Where only libvirt answers: it makes and removes the scratch files itself, in a directory that is there. */
export const NO_FILES: HostFiles = {
  reach: 'none',
  lost: undefined,
  images: undefined,
  makeRunPlaces: () => Promise.resolve(),
  removeRunPlaces: () => Promise.resolve(),
  removeLeftovers: () => Promise.resolve([]),
  taken: () => Promise.resolve([]),
  freeSpace: () => Promise.resolve(undefined),
  domainFiles: (domain, state) => readDomainFiles(domain, state, outOfReach),
  readText: () => Promise.resolve(undefined),
  probeImage: () => Promise.resolve(undefined),
}

/**
 * Makes what `filesOf` has room for. `$1` and `$2` are QEMU's user and group or
 * empty, then the directories. A user who is not root gives QEMU's user the
 * right to enter by an access list, and by its default to himself the right to
 * connect to the socket that QEMU makes.
 */
const MAKE = `
user=$1; group=$2; shift 2; me=$(id -u)
for dir in "$@"; do
  parent=$(dirname -- "$dir")
  if [ -d "$parent" ]; then
    # What runs left that were cut off.
    find "$parent" -maxdepth 1 -type d -name 'run-*' -empty -mmin +1440 -exec rmdir -- {} \\; 2>/dev/null
  else (umask 066; mkdir -p -- "$parent") || exit 1; fi
  (umask 077; mkdir -- "$dir") || exit 1
  [ -z "$user" ] || [ "$user" = "$me" ] && continue
  if [ "$me" = 0 ]; then chown "$user:$group" -- "$dir" || exit 1
  else setfacl -m "u:$user:rwx,d:u:$user:rwx,d:u:$me:rwx" -- "$dir" || exit 1; fi
done`

/** As removeRunPlaces(): files by their own names, then the directories, if they carry a run's name and are empty. */
const UNMAKE = `
for file in "$@"; do
  dir=$(dirname -- "$file")
  case $(basename -- "$dir") in
    run-*[!0-9a-f]*) ;;
    run-?*) [ -d "$dir" ] || continue
      rm -f -- "$file" || exit 1
      rmdir -- "$dir" 2>/dev/null || [ -n "$(ls -A -- "$dir" 2>/dev/null)" ] || [ ! -e "$dir" ] || exit 1 ;;
  esac
done`

const REMOVE = `
for file in "$@"; do
  if [ -f "$file" ] || [ -S "$file" ] && [ ! -L "$file" ]; then rm -f -- "$file" 2>&1; fi
done`

const TAKEN = `for file in "$@"; do if [ -e "$file" ] || [ -L "$file" ]; then printf '%s\\0' "$file"; fi; done`

/** POSIX df: the fourth column, in units of 1 KiB. */
const FREE = `
for dir in "$@"; do
  while [ ! -d "$dir" ]; do dir=$(dirname -- "$dir"); done
  df -Pk -- "$dir" | awk 'END { print $4 }'
done`

const READ = `
[ -e "$1" ] || exit 44
[ "$(wc -c <"$1")" -le "$2" ] || { echo "it has more than $2 bytes" >&2; exit 1; }
cat -- "$1"`

const LIST = `for file in "$1"/*; do [ -e "$file" ] && printf '%s\\0' "$(basename -- "$file")"; done; exit 0`

const PROBE = `identity=$(stat -Lc %d:%i -- "$1") || exit 1; shift; echo "$identity"; exec qemu-img "$@"`

const NO_SUCH_FILE = 44

/** Through a shell on the hypervisor. */
export function sshFiles(link: SshLink): HostFiles {
  /** Rejects with `code` where the script fails. */
  const must = async (script: string, args: readonly string[], code: 'E_CONFIG' | 'E_IO') => {
    const answer = await link.run(script, args)
    if (answer.code === 0) return answer.stdout
    const why = answer.stderr.trim() || `exit code ${answer.code}`
    const hints = code === 'E_CONFIG' ? placeHints(why) : []
    throw new BackupError(
      code,
      `${link.host}: ${code === 'E_CONFIG' ? 'no place for socket and scratch files' : 'its files cannot be used'}`,
      { why, hints },
    )
  }
  const reader: FileReader = {
    read: async (path, maxBytes) => {
      const answer = await link.run(READ, [path, String(maxBytes)])
      if (answer.code === NO_SUCH_FILE) throw missing(path, undefined)
      if (answer.code !== 0) throw new BackupError('E_IO', answer.stderr.trim())
      return answer.stdout
    },
    list: async dir => namesIn((await link.run(LIST, [dir])).stdout),
  }
  return {
    reach: 'ssh',
    get lost() {
      return link.lost
    },
    images: sshImages(link),
    makeRunPlaces: async (places, user) => {
      const dirs = [...new Set(filesOf(places).map(file => file.slice(0, file.lastIndexOf('/'))))]
      await must(
        MAKE,
        [user === undefined ? '' : String(user.uid), user === undefined ? '' : String(user.gid), ...dirs],
        'E_CONFIG',
      )
    },
    removeRunPlaces: async files => {
      await must(UNMAKE, files, 'E_IO')
    },
    removeLeftovers: async paths => {
      try {
        const said = (await must(REMOVE, paths, 'E_IO')).toString().trim()
        return said === '' ? [] : [said]
      } catch (error) {
        return [messageOf(error)]
      }
    },
    taken: async paths => namesIn(await must(TAKEN, paths, 'E_IO')),
    freeSpace: async files => {
      const dirs = [...new Set(files.map(file => file.slice(0, file.lastIndexOf('/'))))]
      if (dirs.length === 0) return undefined
      const free = (await must(FREE, dirs, 'E_IO')).toString().trim().split('\n').map(Number)
      const least = Math.min(...free) * 1024
      return Number.isSafeInteger(least) ? least : undefined
    },
    domainFiles: (domain, state) => readDomainFiles(domain, state, reader),
    readText: async path => {
      const { code, stdout } = await link.run('cat -- "$1"', [path])
      return code === 0 ? stdout.toString() : undefined
    },
    probeImage: async (path, format, signal) => {
      const answer = await link.run(PROBE, [path, ...infoArguments(path, format)], signal)
      const [identity, ...json] = answer.stdout.toString().split('\n')
      if (answer.code !== 0 || identity === undefined) return undefined
      try {
        return { ...decodeInfo(json.join('\n')), identity }
      } catch {
        return undefined
      }
    },
  }
}

function placeHints(why: string): readonly string[] {
  if (why.includes('setfacl')) {
    return ['connect as root, or install acl there: QEMU runs as another user', 'or let QEMU serve over TLS:   --tls']
  }
  return ['choose others with --scratch-dir and `remote: { runtime_dir: … }`; both are directories of that machine']
}

function namesIn(bytes: Buffer): readonly string[] {
  return bytes
    .toString()
    .split('\0')
    .filter(name => name !== '')
}
