import type { ChildProcess } from 'node:child_process'

/** Until somebody is logged in; name look-ups and slow key exchanges included. */
const LOGIN_TIMEOUT_MS = 60_000
/** Of what ssh says on stderr, the end is kept. */
const MAX_COMPLAINT = 4_000
/** Of what a login prints before our greeting. */
const MAX_GREETING = 100_000
/** How many signs of life there are in a lease. */
const BEATS_PER_LEASE = 4

/**
 * What runs at the remote end of the master: it says its process id, and ends
 * with us, however we end: when its standard input does or, as after a power
 * cut here, which sshd would not notice for hours, when no sign of life came
 * for so many seconds. A login shell reads it, whichever that is:
 * one line, without what csh or fish take for something else.
 */
export function greeter(leaseSeconds: number): string {
  const steps = [
    'echo "ready $$."',
    // Where there is no such program, or an old one of BusyBox: without a lease.
    'timeout 9 true >/dev/null 2>&1 || exec cat >/dev/null',
    `while [ -n "$(timeout ${leaseSeconds} head -n 1)" ]; do :; done`,
  ]
  return `exec sh -c '${steps.join('; ')}'`
}

/** A multiplexing ssh process that runs the greeter. */
export class SshMaster {
  readonly control: string
  readonly ended: Promise<void>
  readonly #child: ChildProcess
  readonly #greeted: Promise<boolean>
  readonly #beat: NodeJS.Timeout
  #lease = ''
  #complaint = ''
  #isOver = false

  constructor(child: ChildProcess, control: string, leaseSeconds: number) {
    this.#child = child
    this.control = control
    child.stdin?.on('error', () => undefined)
    child.stderr?.on(
      'data',
      (part: Buffer) => (this.#complaint = (this.#complaint + part.toString()).slice(-MAX_COMPLAINT)),
    )
    this.#greeted = this.#awaitGreeting()
    this.#beat = setInterval(() => child.stdin?.write('beat\n'), (leaseSeconds * 1000) / BEATS_PER_LEASE).unref()
    this.ended = new Promise(done => {
      const over = (why: string) => {
        this.#isOver = true
        clearInterval(this.#beat)
        this.#complaint += why
        done()
      }
      child.once('error', error => over(error.message))
      child.once('close', () => over(''))
    })
    // Without the greeter, nothing over there would be tied to us.
    child.stdout?.once('end', () => child.kill('SIGTERM'))
  }

  get isAlive(): boolean {
    return !this.#isOver
  }

  /** Process id, over there, of what is alive as long as we are. */
  get lease(): string {
    return this.#lease
  }

  /** What ssh said on stderr. */
  get complaint(): string {
    return this.#complaint
  }

  /** Whether it has logged in. */
  async isReady(): Promise<boolean> {
    const late = new Promise<boolean>(done => {
      const timer = setTimeout(() => done(false), LOGIN_TIMEOUT_MS)
      void Promise.race([this.#greeted, this.ended]).then(() => clearTimeout(timer))
    })
    return await Promise.race([this.#greeted, late, this.ended.then(() => false)])
  }

  /** Ends it and all that runs over it. */
  async end(): Promise<void> {
    if (this.#isOver) return
    this.#child.kill('SIGTERM')
    await this.ended
  }

  /** What shells print at a login comes before it. */
  #awaitGreeting(): Promise<boolean> {
    let said = ''
    return new Promise(done =>
      this.#child.stdout?.on('data', (part: Buffer) => {
        said = (said + part.toString()).slice(-MAX_GREETING)
        const pid = /\bready (\d+)\.\n/.exec(said)?.[1]
        if (pid === undefined || this.#lease !== '') return
        this.#lease = pid
        done(true)
      }),
    )
  }
}
