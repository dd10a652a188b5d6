import { BackupError } from '../base/errors.js'
import { failureOf, type RemoteMachine } from './remote-machine.js'

/** Prints what it made, outermost first. What is made here others may pass through, as QEMU's and swtpm's users must, but not list. */
const MAKE = `
make() {
  [ -d "$1" ] && return
  make "$(dirname -- "$1")"
  mkdir -m 711 -- "$1" 2>/dev/null && { printf '%s\\n' "$1"; return; }
  [ -d "$1" ] || { mkdir -- "$1" || exit 1; }
}
make "$1"`

const UNMAKE = 'for dir in "$@"; do rmdir -- "$dir" 2>/dev/null; done; true'

const FOUND = '[ -e "$1" ] || [ -L "$1" ]'

const IS_DIRECTORY = '[ -d "$1" ]'

/** POSIX df: mount point and free units of 1 KiB. */
const ROOM = `
dir=$1
while [ ! -d "$dir" ]; do dir=$(dirname -- "$dir"); done
df -Pk -- "$dir" | awk 'END { print $4 }'`

/** Directories and files on the machine of a hypervisor, as a restore to it needs them. */
export class RemoteDirectories {
  readonly #machine: RemoteMachine
  readonly #made: string[] = []

  constructor(machine: RemoteMachine) {
    this.#machine = machine
  }

  /** With its parents; fine where it exists. Rejects with E_IO, E_NO_SPACE, E_UNREACHABLE. */
  async make(path: string): Promise<void> {
    const answer = await this.#machine.run(MAKE, [path])
    this.#made.push(...answer.stdout.split('\n').filter(line => line !== ''))
    if (answer.code !== 0) throw failureOf(this.#machine.host, path, answer)
  }

  /** Removes what make() made since the last keep(), as far as it is empty. */
  async undo(): Promise<void> {
    const made = this.#made.splice(0).toReversed()
    if (made.length > 0) await this.#machine.run(UNMAKE, made)
  }

  keep(): void {
    this.#made.length = 0
  }

  async exists(path: string): Promise<boolean> {
    return (await this.#machine.run(FOUND, [path])).code === 0
  }

  async isDirectory(path: string): Promise<boolean> {
    return (await this.#machine.run(IS_DIRECTORY, [path])).code === 0
  }

  /** What is missing is fine. Rejects with E_IO, E_UNREACHABLE. */
  async removeFile(path: string): Promise<void> {
    const answer = await this.#machine.run('rm -f -- "$1"', [path])
    if (answer.code !== 0) throw failureOf(this.#machine.host, path, answer)
  }

  /**
   * Rejects with E_NO_SPACE where the file system of `directory`, which need
   * not be there yet, has less than `bytes` free: before hours of copying.
   */
  async requireRoom(directory: string, bytes: number): Promise<void> {
    const answer = await this.#machine.run(ROOM, [directory])
    const free = answer.code === 0 && answer.stdout.trim() !== '' ? Number(answer.stdout) * 1024 : undefined
    if (free === undefined || !Number.isSafeInteger(free) || free >= bytes) return
    throw new BackupError('E_NO_SPACE', `${this.#machine.host} has no room for the images in ${directory}`, {
      why: `${bytes} bytes are to be written, ${free} are free`,
      hints: ['Free space there, or restore to another directory with --to.'],
    })
  }

  /** Throws E_USAGE for a path that means nothing on another machine. */
  requireAbsolute(path: string): void {
    if (path.startsWith('/')) return
    throw new BackupError('E_USAGE', `${path} is relative, and ${this.#machine.host} is another machine`, {
      hints: ['write the whole path:   --to /var/lib/libvirt/images'],
    })
  }

  /** Entry of the machine's user or group database; undefined where there is none. */
  async lookUp(database: 'passwd' | 'group', key: string): Promise<readonly string[] | undefined> {
    const answer = await this.#machine.run('getent -- "$1" "$2"', [database, key])
    return answer.code === 0 ? answer.stdout.trim().split(':') : undefined
  }
}
