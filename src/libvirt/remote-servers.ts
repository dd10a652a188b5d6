import { createInterface } from 'node:readline'

import { throwIfAborted } from '../base/async.js'
import { type Clock, systemClock } from '../base/clock.js'
import { BackupError } from '../base/errors.js'
import type { NbdAddress } from '../native/nbd.js'
import type { RemoteProgram } from './remote-program.js'
import { quote, type SshLink } from './ssh-link.js'

/** A qemu-nbd whose client was cut off a moment ago still saves its bitmaps. */
const LOCK_PATIENCE_MS = 5_000
const LOCK_RETRY_MS = 200
const MAX_COMPLAINT = 4_000

/**
 * Serves and stops as it is told by lines of its standard input, which are ours
 * alone; at their end, however that comes, it ends every server in order, and
 * removes temporary images and its directory. A child's end is seen by its
 * `.end` file, since `kill -0` finds zombies.
 */
const SUPERVISOR = `
serve() {
  id=$1; shift
  (qemu-nbd "--socket=$dir/$id.sock" "--pid-file=$dir/$id.pid" --persistent "$@" </dev/null >/dev/null 2>"$dir/$id.err"
   echo $? >"$dir/$id.part"; mv "$dir/$id.part" "$dir/$id.end") &
  while [ ! -s "$dir/$id.pid" ] && [ ! -e "$dir/$id.end" ]; do sleep 0.05; done
  if [ -e "$dir/$id.end" ]; then tell "$id"; else echo "$id up"; fi
}
own() { printf %s "$2" >"$dir/$1.own"; echo "$1 owned"; }
stop() {
  id=$1
  [ -e "$dir/$id.end" ] || kill -TERM "$(cat "$dir/$id.pid")"
  tries=0
  while [ ! -e "$dir/$id.end" ]; do
    tries=$((tries + 1)); [ $tries -ne 1200 ] || kill -KILL "$(cat "$dir/$id.pid")"
    sleep 0.05
  done
  tell "$id"
}
tell() { printf '%s %s ' "$1" "$(cat "$dir/$1.end")"; head -c 2000 "$dir/$1.err" | tr '\\n' ' '; echo; }
finish() {
  trap '' TERM
  for pid in "$dir"/*.pid; do
    [ -e "$pid" ] && [ ! -e "\${pid%.pid}.end" ] && kill -TERM "$(cat "$pid")"
  done
  wait
  for file in "$dir"/*.own; do [ -e "$file" ] && rm -f -- "$(cat "$file")"; done
  rm -rf -- "$dir"
  exit
}
LC_ALL=C; export LC_ALL
(umask 066; mkdir -p -- "$1") && umask 077 && dir=$(mktemp -d -- "$1/restore-XXXXXXXX") || exit 1
trap finish TERM
printf 'dir %s\\n' "$dir"
while IFS= read -r line; do eval "$line"; done
finish`

/** A qemu-nbd of another machine. Disposing ends it, and never rejects. */
export interface RemoteServer extends AsyncDisposable {
  /** Of this machine; QEMU's server is at its other end. */
  readonly address: NbdAddress
  /** Ends it and waits until the image is closed. Rejects with E_IO where it did not end in order, E_UNREACHABLE. */
  stop(): Promise<void>
}

/**
 * The qemu-nbds that serve images of another machine to us, all in one ssh
 * session. They end with it, in order, also where this process is killed or the
 * connection breaks: what was written is in the images, bitmaps are saved.
 */
export class RemoteServers implements AsyncDisposable {
  readonly #link: SshLink
  readonly #runtimeDir: () => Promise<string>
  #supervisor: Promise<Supervisor> | undefined

  /** Starts nothing yet. `runtimeDir` is a directory over there, made where it is absent. */
  constructor(link: SshLink, runtimeDir: () => Promise<string>) {
    this.#link = link
    this.#runtimeDir = runtimeDir
  }

  /**
   * Notes a name that only we use: what has it when all ends, however that
   * comes, is removed. Rejects with E_UNREACHABLE, E_CONFIG.
   */
  async own(path: string): Promise<void> {
    const supervisor = await this.#present()
    if ((await supervisor.own(path)) === undefined) throw this.#gone()
  }

  /**
   * Serves `path` by a qemu-nbd with these further arguments. Rejects with
   * E_DOMAIN_BUSY where another process has the image in use, E_TOOL_MISSING,
   * E_NBD, E_UNREACHABLE, E_CONFIG.
   */
  async serve(
    image: { readonly path: string; readonly args: readonly string[] },
    signal: AbortSignal,
    clock: Clock = systemClock,
  ): Promise<RemoteServer> {
    const patience = clock.monotonic() + LOCK_PATIENCE_MS
    for (;;) {
      throwIfAborted(signal)
      const supervisor = await this.#present()
      const { id, said } = await supervisor.serve(image.args)
      if (said === undefined) throw this.#gone()
      if (said === 'up') return await this.#reach(supervisor, id)
      if (!/\block\b/i.test(said)) throw this.#didNotStart(image.path, said)
      if (clock.monotonic() > patience) throw this.#inUse(image.path, said)
      await clock.sleep(LOCK_RETRY_MS, signal)
    }
  }

  /** Ends all that still run. */
  async [Symbol.asyncDispose](): Promise<void> {
    const supervisor = await this.#supervisor?.catch(() => undefined)
    await supervisor?.end()
  }

  async #reach(supervisor: Supervisor, id: string): Promise<RemoteServer> {
    let isStopped = false
    const stop = async () => {
      isStopped = true
      const said = await supervisor.stop(id)
      if (said === undefined) throw this.#gone()
      if (!/^0\b/.test(said)) {
        throw new BackupError('E_IO', `qemu-nbd did not close the image on ${this.#link.host} in order`, {
          why: withoutCode(said),
        })
      }
    }
    const dispose = async () => {
      if (!isStopped) await stop().catch(() => undefined)
    }
    try {
      const address = await this.#link.reach(`${supervisor.directory}/${id}.sock`)
      return { address, stop, [Symbol.asyncDispose]: dispose }
    } catch (error) {
      await dispose()
      throw error
    }
  }

  /** The session that is alive, or a new one. */
  #present(): Promise<Supervisor> {
    const before = this.#supervisor
    const present = async () => {
      const known = await before?.catch(() => undefined)
      return known?.isAlive === true ? known : await this.#start()
    }
    this.#supervisor = present()
    return this.#supervisor
  }

  async #start(): Promise<Supervisor> {
    const runtimeDir = await this.#runtimeDir()
    const program = await this.#link.start(['sh', '-c', SUPERVISOR, 'sh', runtimeDir], 'TERM')
    const supervisor = new Supervisor(program)
    if (await supervisor.isReady()) return supervisor
    await supervisor.end()
    if (this.#link.lost.aborted) throw this.#gone()
    throw new BackupError('E_CONFIG', `${this.#link.host}: no place for sockets below ${runtimeDir}`, {
      why: supervisor.complaint,
      hints: ['name another directory of that machine with `remote: { runtime_dir: … }`'],
    })
  }

  #gone(): unknown {
    const { lost, host } = this.#link
    if (lost.aborted) return lost.reason
    return new BackupError('E_UNREACHABLE', `${host}: the ssh session that served its images has ended`)
  }

  #didNotStart(path: string, said: string): BackupError {
    const { host } = this.#link
    if (said.startsWith('127 ')) {
      return new BackupError('E_TOOL_MISSING', `qemu-nbd is not installed on ${host}`, {
        hints: [`on ${host}:   apt install qemu-utils`],
      })
    }
    return new BackupError('E_NBD', `qemu-nbd of ${host} cannot serve ${path}`, { why: withoutCode(said) })
  }

  #inUse(path: string, said: string): BackupError {
    return new BackupError('E_DOMAIN_BUSY', `${path} on ${this.#link.host} is in use`, {
      why: withoutCode(said),
      hints: [`see by whom, over there:   fuser -v ${path}`],
    })
  }
}

function withoutCode(said: string): string {
  return said.replace(/^\d+ /, '').trim()
}

/** One ssh session; what it is asked is done one after the other. */
class Supervisor {
  readonly #program: RemoteProgram
  readonly #waiting = new Map<string, (said: string | undefined) => void>()
  #directory: string | undefined
  #isOver = false
  #complaint = ''
  #last = 0

  constructor(program: RemoteProgram) {
    this.#program = program
    program.stderr.on('data', (text: Buffer) => {
      this.#complaint = (this.#complaint + text.toString()).slice(-MAX_COMPLAINT)
    })
    createInterface({ input: program.stdout }).on('line', line => {
      const space = line.indexOf(' ')
      this.#settle(line.slice(0, space), line.slice(space + 1))
    })
    void program.ended.then(() => {
      this.#isOver = true
      for (const key of this.#waiting.keys()) this.#settle(key, undefined)
    })
  }

  get isAlive(): boolean {
    return !this.#isOver
  }

  get complaint(): string {
    return this.#complaint.trim()
  }

  /** Its own, over there. */
  get directory(): string {
    return this.#directory ?? ''
  }

  async isReady(): Promise<boolean> {
    this.#directory = await this.#answer('dir')
    return this.#directory !== undefined
  }

  /** `up`, or exit code and stderr of what ended; undefined where the session did. */
  async serve(args: readonly string[]): Promise<{ readonly id: string; readonly said: string | undefined }> {
    const id = `s${++this.#last}`
    return { id, said: await this.#ask(id, `serve ${id} ${args.map(quote).join(' ')}`) }
  }

  async own(path: string): Promise<string | undefined> {
    const id = `s${++this.#last}`
    return await this.#ask(id, `own ${id} ${quote(path)}`)
  }

  async stop(id: string): Promise<string | undefined> {
    return await this.#ask(id, `stop ${id}`)
  }

  async end(): Promise<void> {
    await this.#program[Symbol.asyncDispose]()
  }

  async #ask(id: string, line: string): Promise<string | undefined> {
    if (/[\r\n]/.test(line)) throw new BackupError('E_UNSUPPORTED', 'the path of an image has a line break')
    const answer = this.#answer(id)
    this.#program.stdin.write(`${line}\n`)
    return await answer
  }

  async #answer(key: string): Promise<string | undefined> {
    if (this.#isOver) return undefined
    return await new Promise(settle => this.#waiting.set(key, settle))
  }

  #settle(key: string, said: string | undefined): void {
    this.#waiting.get(key)?.(said)
    this.#waiting.delete(key)
  }
}
