import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdir, mkdtemp, readdir, rm } from 'node:fs/promises'
import { connect } from 'node:net'
import { join } from 'node:path'

import { BackupError } from '../base/errors.js'
import type { LibvirtUri } from '../model/libvirt-uri.js'
import type { NbdAddress } from '../native/nbd.js'
import { keeperOf, RemoteProgram } from './remote-program.js'
import { greeter, SshMaster } from './ssh-master.js'

const COMMAND_TIMEOUT_MS = 60_000
const GREETING_TIMEOUT_MS = 30_000
const MAX_ANSWER_BYTES = 16 * 1024 * 1024
/** Without a sign of life from us for so long, what we run over there ends by itself. */
const LEASE_SECONDS = 60

export interface SshAnswer {
  readonly code: number
  readonly stdout: Buffer
  readonly stderr: string
}

export interface SshPlace {
  /** Absolute, on this machine, closed to others; control and tunnel sockets lie in a directory below it. */
  readonly runtimeDir: string
  /** After how many seconds without a sign of life from us everything of ours over there ends; default 60. */
  readonly leaseSeconds?: number | undefined
}

/** The options of `ssh`, and the program, that libvirt's URI asks for: the same door as libvirt's own. */
export function sshOptionsOf(uri: LibvirtUri): { readonly program: string; readonly options: readonly string[] } {
  const { parameters } = uri
  const given = (name: string, ...words: readonly string[]) => {
    const value = parameters.get(name)
    return value === undefined || value === '' ? [] : words.map(word => word.replace('%', () => value))
  }
  const isUnverified = parameters.get('no_verify') === '1' || parameters.get('known_hosts_verify') === 'ignore'
  return {
    program: parameters.get('command') ?? 'ssh',
    options: [
      ...(uri.port === undefined ? [] : ['-p', String(uri.port)]),
      ...(uri.user === undefined ? [] : ['-l', uri.user]),
      ...given('keyfile', '-i', '%'),
      ...given('known_hosts', '-o', 'UserKnownHostsFile=%'),
      ...(isUnverified ? ['-o', 'StrictHostKeyChecking=no'] : []),
      '-T',
      '-e',
      'none',
    ],
  }
}

/**
 * One ssh connection to a hypervisor, made when it is first needed, over which
 * commands and tunnels run (a multiplexed OpenSSH connection). A connection
 * that was lost is made anew by the next command; its tunnels are not.
 *
 * Everything here ends with this process, also by SIGKILL: the far end reads
 * our standard input, and ends when that does.
 */
export class SshLink implements AsyncDisposable {
  readonly host: string
  readonly #uri: LibvirtUri
  readonly #place: SshPlace
  #folder: Promise<string> | undefined
  #master: Promise<SshMaster> | undefined
  readonly #tunnels = new Map<string, Promise<NbdAddress>>()
  #lost = new AbortController()
  #isClosed = false

  /** Connects to nothing yet. */
  constructor(uri: LibvirtUri, place: SshPlace) {
    this.#uri = uri
    this.#place = place
    this.host = uri.host ?? 'localhost'
  }

  /** Aborted, with E_UNREACHABLE as its reason, when the present connection is lost; a new connection has a new one. */
  get lost(): AbortSignal {
    return this.#lost.signal
  }

  /**
   * Runs a script in `sh` there, with `args` as its `$1`, `$2`, …; the script
   * comes on its standard input, so no login shell has a say in it. Rejects
   * with E_UNREACHABLE, E_TIMEOUT; one that fails has its code in the answer.
   */
  async run(script: string, args: readonly string[] = [], signal?: AbortSignal): Promise<SshAnswer> {
    const master = await this.#connected()
    const text = scriptText(script, args)
    const answer = await runProgram(this.#program, [...this.#throughMaster(master), '--', this.host, 'sh'], {
      input: text,
      timeoutMs: COMMAND_TIMEOUT_MS,
      signal,
    })
    // What ssh itself ends with where it does not get through.
    if (answer.code === 255) throw this.#unreachable(answer.stderr)
    return answer
  }

  /**
   * Starts a program there (its name and arguments; no shell parses them),
   * connected to us by its standard streams. Its life is tied to ours: it is
   * ended with `signal`, KILL unless given, when it is disposed of, when this
   * process ends in whatever way, when the connection is lost, and after a
   * minute without a sign of life from us (a power cut here, of which no word
   * reaches sshd). Where it serves NBD on a Unix socket, reach() leads there as
   * soon as it listens.
   *
   * Rejects with E_UNREACHABLE. Where there is no such program, it ends with
   * 127 at once, and where the connection is lost, with 255.
   */
  async start(words: readonly string[], signal: 'KILL' | 'TERM' = 'KILL'): Promise<RemoteProgram> {
    const master = await this.#connected()
    const { script, args } = keeperOf({ lease: master.lease, signal, words })
    const text = scriptText(script, args)
    // The shell takes its script off standard input, to the byte; what comes after is the program's.
    const shell = `exec sh -c 'eval "$(dd bs=1 count=${Buffer.byteLength(text)} 2>/dev/null)"'`
    // Never over a connection of its own, where the shared one has just been lost.
    const only = ['-o', 'ProxyCommand=false']
    const child = spawn(this.#program, [...only, ...this.#throughMaster(master), '--', this.host, shell], {
      stdio: ['pipe', 'pipe', 'pipe'],
      detached: true,
    })
    const program = new RemoteProgram(child)
    program.stdin.write(text)
    return program
  }

  /**
   * Where to connect to here, to get to the Unix socket `remote` there: a
   * forwarded socket or, where the server forbids that, a command per
   * connection. Something must serve NBD on it already. Rejects with
   * E_UNREACHABLE, E_NBD.
   */
  async reach(remote: string): Promise<NbdAddress> {
    const known = this.#tunnels.get(remote) ?? this.#tunnel(remote)
    this.#tunnels.set(remote, known)
    try {
      return await known
    } catch (error) {
      this.#tunnels.delete(remote)
      throw error
    }
  }

  /**
   * The other way round: what connects to the Unix socket `remote` there gets to
   * `local` here, until that is disposed of, or the connection is lost: then the
   * socket stays there, and leads nowhere. What lay at `remote` is removed.
   * Rejects with E_UNREACHABLE, E_NBD where sshd forbids it.
   */
  async offer(local: string, remote: string): Promise<AsyncDisposable> {
    const unlink = () => this.run('rm -f -- "$1"', [remote])
    await unlink()
    const master = await this.#connected()
    const options = { input: '', timeoutMs: COMMAND_TIMEOUT_MS, signal: undefined }
    const ask = (what: 'forward' | 'cancel') => {
      const words = ['-O', what, '-R', `${remote}:${local}`, this.host]
      return runProgram(this.#program, [...this.#throughMaster(master), ...words], options)
    }
    const made = await ask('forward')
    if (made.code !== 0) {
      throw new BackupError('E_NBD', `sshd of ${this.host} does not let QEMU there reach us`, {
        why: made.stderr.trim(),
        hints: [`allow it in the sshd_config of ${this.host}:   AllowStreamLocalForwarding yes`],
      })
    }
    const end = async () => {
      if (!master.isAlive) return
      await ask('cancel').catch(() => undefined)
      await unlink().catch(() => undefined)
    }
    return { [Symbol.asyncDispose]: end }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isClosed = true
    const master = await this.#master?.catch(() => undefined)
    if (master !== undefined) await master.end()
    const folder = await this.#folder?.catch(() => undefined)
    if (folder !== undefined) await rm(folder, { recursive: true, force: true })
  }

  get #program(): string {
    return sshOptionsOf(this.#uri).program
  }

  #throughMaster(master: SshMaster): readonly string[] {
    return [
      ...sshOptionsOf(this.#uri).options,
      '-o',
      'ControlMaster=no',
      '-o',
      'BatchMode=yes',
      '-S',
      master.control,
      ...QUIET,
    ]
  }

  async #tunnel(remote: string): Promise<NbdAddress> {
    const master = await this.#connected()
    const local = join(await this.#ownFolder(), `${randomBytes(4).toString('hex')}.sock`)
    const forward = ['-O', 'forward', '-L', `${local}:${remote}`]
    const options = { input: '', timeoutMs: COMMAND_TIMEOUT_MS, signal: undefined }
    const made = await runProgram(this.#program, [...this.#throughMaster(master), ...forward, this.host], options)
    const why = made.code === 0 ? await greetingFailure(local) : made.stderr.trim()
    if (why === undefined) return { socket: local }
    // AllowStreamLocalForwarding no, or a socket that this user may not use: the next one tells which.
    const relay = await this.run(RELAY_PROBE, [remote])
    const [program] = relay.stdout.toString().split('\n')
    if (relay.code === 0 && program !== undefined && program !== '') {
      const command = `exec ${program.replace('%', () => quote(remote))}`
      return { command: [this.#program, ...this.#throughMaster(master), '--', this.host, `sh -c ${quote(command)}`] }
    }
    throw new BackupError('E_NBD', `the NBD socket of ${this.host} cannot be reached through ssh`, {
      why: [why, relay.stderr.trim() || relay.stdout.toString().trim()].filter(text => text !== '').join('; '),
      hints: [
        `allow it in the sshd_config of ${this.host}:   AllowStreamLocalForwarding yes`,
        'or install netcat-openbsd or socat there',
        'or let QEMU serve over TLS:   --tls',
      ],
    })
  }

  /** The connection that is alive, or a new one. */
  async #connected(): Promise<SshMaster> {
    if (this.#isClosed) throw this.#unreachable('it was closed')
    const present = await this.#master?.catch(() => undefined)
    if (present?.isAlive === true) return present
    this.#tunnels.clear()
    this.#master = this.#connect()
    return await this.#master
  }

  async #connect(): Promise<SshMaster> {
    const leaseSeconds = this.#place.leaseSeconds ?? LEASE_SECONDS
    const control = join(await this.#ownFolder(), `c${randomBytes(3).toString('hex')}`)
    const { program, options } = sshOptionsOf(this.#uri)
    const own = ['ControlMaster=yes', 'ControlPersist=no', 'ClearAllForwardings=yes', 'StreamLocalBindUnlink=yes']
    const alive = ['ServerAliveInterval=5', 'ServerAliveCountMax=3', 'ConnectTimeout=30', 'BatchMode=yes']
    const said = [...own, ...alive].flatMap(option => ['-o', option])
    const child = spawn(
      program,
      [...options, ...said, '-S', control, ...QUIET, '--', this.host, greeter(leaseSeconds)],
      {
        stdio: ['pipe', 'pipe', 'pipe'],
        // Ctrl-C is for us; we end it when we are done.
        detached: true,
      },
    )
    const master = new SshMaster(child, control, leaseSeconds)
    if (await master.isReady()) {
      const lost = new AbortController()
      this.#lost = lost
      void master.ended.then(() => {
        if (!this.#isClosed) lost.abort(this.#unreachable(master.complaint, 'the ssh connection was lost'))
      })
      return master
    }
    await master.end()
    throw this.#unreachable(master.complaint)
  }

  #unreachable(detail: string, what = 'no ssh connection could be made'): BackupError {
    const { user, port } = this.#uri
    const words = [
      ...(port === undefined ? [] : ['-p', String(port)]),
      `${user === undefined ? '' : `${user}@`}${this.host}`,
    ]
    return new BackupError('E_UNREACHABLE', `${this.host}: ${what}`, {
      why: detail.trim() === '' ? 'ssh does not say why' : detail.trim(),
      hints: [
        `it must work without a question:   ssh -o BatchMode=yes ${words.join(' ')} true`,
        'or read the disks over TLS instead of ssh:   --tls',
      ],
    })
  }

  #ownFolder(): Promise<string> {
    this.#folder ??= makeFolder(this.#place.runtimeDir)
    return this.#folder
  }
}

const QUIET = ['-o', 'LogLevel=ERROR']

/** What `sh` reads: messages in English, `args` as `$1`, `$2`, …. */
function scriptText(script: string, args: readonly string[]): string {
  return `LC_ALL=C; export LC_ALL\nset -- ${args.map(quote).join(' ')}\n${script}\n`
}

/** Prints the command that carries standard input and output to a socket; `%` is the socket. Fails where there is none or it is closed to us. */
const RELAY_PROBE = `
[ -S "$1" ] || { echo "$1 is not there"; exit 1; }
[ -w "$1" ] || { echo "$(id -un) may not use $1"; exit 1; }
if command -v nc >/dev/null && nc -h 2>&1 | grep -q -- '-U'; then echo 'nc -U %'
elif command -v socat >/dev/null; then echo 'socat - UNIX-CONNECT:%'
else echo 'neither nc -U nor socat is installed'; exit 1; fi`

/** undefined where an NBD server says its first word on the socket; else what happened instead. */
function greetingFailure(path: string): Promise<string | undefined> {
  return new Promise(done => {
    const socket = connect(path)
    socket.setTimeout(GREETING_TIMEOUT_MS)
    const settle = (why: string | undefined) => {
      socket.destroy()
      done(why)
    }
    socket.once('data', () => settle(undefined))
    socket.once('error', error => settle(error.message))
    socket.once('timeout', () => settle('the tunnel is silent'))
    socket.once('end', () => settle('sshd does not forward to that socket'))
  })
}

/** Also removes what processes left that were killed. */
async function makeFolder(runtimeDir: string): Promise<string> {
  await mkdir(runtimeDir, { recursive: true, mode: 0o711 })
  for (const name of await readdir(runtimeDir)) {
    const pid = /^ssh-(\d+)-/.exec(name)?.[1]
    if (pid !== undefined && !isRunning(Number(pid))) await rm(join(runtimeDir, name), { recursive: true, force: true })
  }
  return await mkdtemp(join(runtimeDir, `ssh-${process.pid}-`))
}

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return error instanceof Error && 'code' in error && error.code === 'EPERM'
  }
}

/** For a POSIX shell. */
export function quote(word: string): string {
  return `'${word.replaceAll("'", `'\\''`)}'`
}

interface Running {
  readonly input: string
  readonly timeoutMs: number
  readonly signal: AbortSignal | undefined
}

async function runProgram(program: string, args: readonly string[], running: Running): Promise<SshAnswer> {
  const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'pipe'] })
  const out: Buffer[] = []
  const err: Buffer[] = []
  let bytes = 0
  let isLate = false
  const stop = () => child.kill('SIGKILL')
  const timer = setTimeout(() => {
    isLate = true
    stop()
  }, running.timeoutMs)
  running.signal?.addEventListener('abort', stop, { once: true })
  child.stdout.on('data', (part: Buffer) => {
    bytes += part.length
    if (bytes <= MAX_ANSWER_BYTES) out.push(part)
    else stop()
  })
  child.stderr.on('data', (part: Buffer) => {
    if (err.length < 100) err.push(part)
  })
  child.stdin.on('error', () => undefined)
  child.stdin.end(running.input)
  try {
    const code = await new Promise<number>((done, fail) => {
      child.once('error', fail)
      child.once('close', status => done(status ?? -1))
    })
    running.signal?.throwIfAborted()
    if (isLate) throw new BackupError('E_TIMEOUT', `${program}: no answer within ${running.timeoutMs / 1000} s`)
    if (bytes > MAX_ANSWER_BYTES)
      throw new BackupError('E_IO', `${program}: an answer of more than ${MAX_ANSWER_BYTES} bytes`)
    return { code, stdout: Buffer.concat(out), stderr: Buffer.concat(err).toString() }
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') {
      throw new BackupError('E_TOOL_MISSING', `${program} is not installed`, { cause: error })
    }
    throw error
  } finally {
    clearTimeout(timer)
    running.signal?.removeEventListener('abort', stop)
  }
}
