import { randomBytes } from 'node:crypto'
import { basename, dirname, extname, join } from 'node:path'

import { BackupError, errorCodeOf, messageOf } from '../base/errors.js'
import { invariant } from '../base/invariant.js'
import { ExportImage } from './export-image.js'
import type { ImageFactory, ImageSpec, SideFile, SideFileSpec } from './image-factory.js'
import type { ImageFileOptions, ImageOutcome, ImagePiece, ImageWriter } from './image-writer.js'
import { checkQcow2, type Qcow2Options } from './qcow2.js'
import { failureOf, REFUSE_TAKEN, type RemoteExport, type RemoteMachine } from './remote-machine.js'

/** `$1` a new temporary beside the final name `$2`, `$3` force or nothing, `$4` format, `$5` bytes, `$6` options. */
const CREATE = `${REFUSE_TAKEN}
dir=$(dirname -- "$2")
[ -d "$dir" ] || { echo "$dir is no directory" >&2; exit 1; }
refuse_taken "$2" "$3"
umask 077; set -C; : >"$1" || exit 1; set +C
qemu-img create -q -f "$4" \${6:+-o "$6"} -- "$1" "$5" >&2 || { code=$?; rm -f -- "$1"; exit $code; }`

/**
 * Gives `$1` the name `$2`: `$3` as above, `$4` owner or nothing, `$5` mode, `$6` its length or nothing. link(2) refuses a
 * name that is taken, atomically; where there are no links, a small window is left.
 */
const COMMIT = `${REFUSE_TAKEN}
[ -z "$6" ] || truncate -s "$6" -- "$1" || exit 1
[ -z "$4" ] || chown "$4" -- "$1" || exit 1
chmod "$5" -- "$1" && sync -- "$1" || exit 1
if [ "$3" = force ]; then refuse_taken "$2" force; mv -fT -- "$1" "$2" || exit 1
elif ln -T -- "$1" "$2" 2>/dev/null; then rm -f -- "$1"
else refuse_taken "$2" ''; mv -T -- "$1" "$2" || exit 1; fi
sync -- "$(dirname -- "$2")" || exit 1
stat -c %s -- "$2"`

/** Writes `$4` bytes to a new temporary `$1`, where `$2` and `$3` allow that it gets its name. */
const PUT = `${REFUSE_TAKEN}
refuse_taken "$2" "$3"
umask 077; set -C
head -c "$4" >"$1" && [ "$(wc -c <"$1")" -eq "$4" ]`

const CHECK = `${REFUSE_TAKEN}
refuse_taken "$1" "$2"`

const REMOVE = 'rm -f -- "$@"'

/** Told of files over there that nobody needs any more, and that are left, or may be. */
export type RemoteLeftovers = (files: readonly string[], error: unknown) => void

/**
 * Images on the machine of a hypervisor. QEMU's own tools over there make and
 * write them, so what a network, a kernel or a file system there does to them is
 * QEMU's business: we send what is not zero, and flush.
 *
 *     DIR/.NAME.virtvault-<random>  ──commit()──►  DIR/NAME
 *           └──────dispose, any failure──────►  gone
 */
export class RemoteImages implements ImageFactory {
  readonly #machine: RemoteMachine
  readonly #onLeft: RemoteLeftovers
  /** Final names that this run has given and undo() takes back. */
  readonly #named: string[] = []
  #isGone = false

  constructor(machine: RemoteMachine, onLeft: RemoteLeftovers) {
    this.#machine = machine
    this.#onLeft = onLeft
  }

  /** Throws E_UNSUPPORTED for an image that cannot be made over there, before anything is touched. */
  check(spec: ImageSpec): void {
    if (spec.kind === 'raw') return
    const what = obstacleOf(spec)
    if (what !== undefined) {
      throw new BackupError('E_UNSUPPORTED', `${what} cannot be restored to another machine`, {
        hints: ['restore it here with --to DIR, without --define, and copy it', 'or run virtvault on that machine'],
      })
    }
    if (spec.kind === 'qcow2') checkQcow2(spec)
  }

  async create(spec: ImageSpec, signal: AbortSignal): Promise<ImageWriter> {
    this.check(spec)
    if (spec.kind !== 'qcow2' && spec.kind !== 'raw') throw new Error('bug: checked above')
    const temporary = temporaryFor(spec.path)
    const { host } = this.#machine
    const args = [temporary, spec.path, forced(spec), spec.kind, String(spec.size), optionsOf(spec)]
    try {
      await this.#machine.own(temporary)
      const answer = await this.#machine.run(CREATE, args, signal)
      if (answer.code !== 0) throw failureOf(host, spec.path, answer)
      const served = await this.#machine.serve({ path: temporary, format: spec.kind }, signal)
      try {
        return new RemoteImage({ spec, temporary, served, machine: this.#machine, images: this })
      } catch (error) {
        await served[Symbol.asyncDispose]()
        throw error
      }
    } catch (error) {
      if (!NOTHING_MADE.has(errorCodeOf(error))) await this.remove([temporary])
      throw error
    }
  }

  async createFile({ path, bytes, force }: SideFileSpec): Promise<SideFile> {
    const machine = this.#machine
    const temporary = temporaryFor(path)
    try {
      await machine.own(temporary)
      const answer = await machine.feed(PUT, [temporary, path, forced({ force }), String(bytes.length)], bytes)
      if (answer.code !== 0) throw failureOf(machine.host, path, answer)
    } catch (error) {
      if (!NOTHING_MADE.has(errorCodeOf(error))) await this.remove([temporary])
      throw error
    }
    let isNamed = false
    return {
      path,
      commit: async () => {
        await this.name(temporary, { path, force, size: bytes.length, mode: 0o600 })
        isNamed = true
      },
      [Symbol.asyncDispose]: async () => {
        if (!isNamed) await this.remove([temporary])
      },
    }
  }

  /** Owner, mode, fsync, final name. Resolves to the file's length. Rejects with E_EXISTS, E_REFUSED, E_NO_SPACE, E_IO, E_UNREACHABLE. */
  async name(
    temporary: string,
    file: Pick<ImageFileOptions, 'path' | 'force' | 'owner' | 'mode' | 'size'> & { readonly truncate?: boolean },
  ): Promise<number> {
    const { path, owner, mode, size } = file
    const ownerWord = owner === undefined ? '' : `${owner.uid}:${owner.gid}`
    const args = [temporary, path, forced(file), ownerWord, (mode ?? 0o600).toString(8)]
    const answer = await this.#machine
      .run(COMMIT, [...args, file.truncate === true ? String(size) : ''])
      .catch((error: unknown) => {
        // Whether it has the name by now nobody knows, nor whose file that is.
        this.#onLeft([path], error)
        throw error
      })
    if (answer.code !== 0) throw failureOf(this.#machine.host, path, answer)
    // What it replaced cannot be brought back.
    if (file.force !== true) this.#named.push(path)
    return Number(answer.stdout.trim())
  }

  /** Takes back the names that were given since the last keep(), but for those that replaced something. */
  async undo(): Promise<void> {
    await this.remove(this.#named.splice(0))
  }

  /** Whatever has its final name by now stays. */
  keep(): void {
    this.#named.length = 0
  }

  /** Never rejects: what stays is told. */
  async remove(files: readonly string[]): Promise<void> {
    if (files.length === 0) return
    try {
      // Where no connection could be made a moment ago, each further file would wait as long again.
      if (this.#isGone) throw new BackupError('E_UNREACHABLE', `${this.#machine.host} is not reached any more`)
      const answer = await this.#machine.run(REMOVE, files)
      if (answer.code !== 0) throw new BackupError('E_IO', answer.stderr.trim())
    } catch (error) {
      this.#isGone ||= errorCodeOf(error) === 'E_UNREACHABLE'
      this.#onLeft(files, error)
    }
  }
}

interface RemoteImageParts {
  readonly spec: ImageSpec & { readonly kind: 'qcow2' | 'raw' }
  readonly temporary: string
  readonly served: RemoteExport
  readonly machine: RemoteMachine
  readonly images: RemoteImages
}

/** A new image: what is never written reads as zeros, and takes no room. */
class RemoteImage implements ImageWriter {
  readonly size: number
  readonly startsZeroed = true
  readonly #parts: RemoteImageParts
  readonly #export: ExportImage
  #path: string
  #isNamed = false

  constructor(parts: RemoteImageParts) {
    const { spec, served } = parts
    this.#parts = parts
    this.#path = spec.path
    this.size = spec.size
    this.#export = new ExportImage(spec.path, spec.size, served.target)
  }

  get name(): string {
    return this.#path
  }

  async write(pieces: readonly ImagePiece[], bytes: Uint8Array, signal: AbortSignal): Promise<void> {
    await this.#naming(this.#export.write(pieces, bytes, signal))
  }

  async zero(offset: number, length: number): Promise<void> {
    invariant(offset <= this.size && length <= this.size - offset, 'a piece lies beyond the disk')
    return Promise.resolve()
  }

  async markDamaged(): Promise<void> {
    const extension = extname(this.#path)
    const path = `${this.#path.slice(0, this.#path.length - extension.length)}.damaged${extension}`
    const { machine, spec } = this.#parts
    const answer = await machine.run(CHECK, [path, forced(spec)])
    if (answer.code !== 0) throw failureOf(machine.host, path, answer)
    this.#path = path
  }

  async commit(signal: AbortSignal): Promise<ImageOutcome> {
    const { spec, temporary, served, images } = this.#parts
    const { dataBytes } = await this.#naming(this.#export.commit(signal))
    await this.#export[Symbol.asyncDispose]()
    await this.#naming(served.close())
    signal.throwIfAborted()
    // qemu-img makes whole sectors.
    const truncate = spec.kind === 'raw' && spec.size % 512 !== 0
    const fileBytes = await images.name(temporary, { ...spec, path: this.#path, truncate })
    this.#isNamed = true
    return { dataBytes, fileBytes }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#isNamed) return
    this.#isNamed = true
    await this.#export[Symbol.asyncDispose]()
    await this.#parts.served[Symbol.asyncDispose]()
    await this.#parts.images.remove([this.#parts.temporary])
  }

  async #naming<T>(work: Promise<T>): Promise<T> {
    try {
      return await work
    } catch (error) {
      if (errorCodeOf(error) !== 'E_NO_SPACE') throw error
      throw new BackupError('E_NO_SPACE', `${this.#parts.machine.host}: no room for ${this.#path}`, {
        why: messageOf(error),
        hints: ['Free space there, or restore to another directory with --to.'],
        cause: error,
      })
    }
  }
}

/** Refused before the temporary was made. */
const NOTHING_MADE: ReadonlySet<string> = new Set(['E_EXISTS', 'E_REFUSED', 'E_TOOL_MISSING'])

function obstacleOf(spec: Exclude<ImageSpec, { kind: 'raw' }>): string | undefined {
  if (spec.kind !== 'qcow2') return `a disk on a ${spec.kind}`
  if ((spec.compression ?? 'none') !== 'none') return 'a compressed image'
  return spec.dataFile === undefined ? undefined : 'an image with a data file'
}

function temporaryFor(path: string): string {
  return join(dirname(path), `.${basename(path)}.virtvault-${randomBytes(8).toString('hex')}`)
}

function forced({ force }: { readonly force?: boolean | undefined }): string {
  return force === true ? 'force' : ''
}

/** As `qemu-img create -o` takes them. */
function optionsOf(
  spec: ({ readonly kind: 'qcow2' } & Qcow2Options) | ({ readonly kind: 'raw' } & ImageFileOptions),
): string {
  const onOff = (flag: boolean | undefined) => (flag === undefined ? undefined : flag ? 'on' : 'off')
  const options = {
    preallocation: spec.preallocation,
    ...(spec.kind === 'raw'
      ? {}
      : {
          cluster_size: spec.clusterSize,
          compat: spec.compat,
          lazy_refcounts: onOff(spec.lazyRefcounts),
          extended_l2: onOff(spec.extendedL2),
        }),
  }
  return Object.entries(options)
    .flatMap(([name, value]) => (value === undefined ? [] : [`${name}=${value}`]))
    .join(',')
}
