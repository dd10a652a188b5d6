import type { ChildProcessWithoutNullStreams } from 'node:child_process'
import type { Readable, Writable } from 'node:stream'

/** Until the far end has ended its program and said so; then it is given up, and ends by itself. */
const END_TIMEOUT_MS = 10_000

/**
 * Runs a program in `sh`, and ends it with the connection. `$1` is the process
 * that is alive as long as we are (the master's lease), `$2` the signal that
 * ends the program, then the program and its arguments.
 *
 * Standard input reaches it through `cat`, so that its end is noticed even
 * where the program does not look at it, and a pipe with a name, which it has
 * for a moment only: `wait` waits for all of a pipeline, and `cat` would not
 * end with the program.
 */
const KEEPER = `
lease=$1 signal=$2 program= over=
shift 2
end() { over=1; [ -z "$program" ] || kill -s "$signal" "$program"; }
trap end TERM HUP INT
dir=$(umask 077; mktemp -d) && mkfifo "$dir/input" || exit 1
exec 3<&0
"$@" <"$dir/input" 3<&- &
program=$!
exec 4>"$dir/input"
rm -rf "$dir"
{ cat <&3 >&4; kill -s TERM $$; } </dev/null >/dev/null 2>&1 &
input=$!
{ while kill -0 "$lease" && kill -0 $$; do sleep 1; done; kill -s TERM $$ || kill -s "$signal" "$program"
} </dev/null >/dev/null 2>&1 3<&- 4>&- &
watch=$!
# What is left of the streams is the program's alone.
exec </dev/null >/dev/null 2>&1 3<&- 4>&-
[ -z "$over" ] || end
wait "$program"; code=$?
# A signal to us ends that early, and the program a moment later.
[ -z "$over" ] || { wait "$program"; code=$?; }
kill "$input" "$watch"
exit "$code"`

export interface KeptProgram {
  /** Of the process over there that is alive as long as we are. */
  readonly lease: string
  readonly signal: 'KILL' | 'TERM'
  readonly words: readonly string[]
}

/** What `sh` has to run over there: script and `$1`, `$2`, …. */
export function keeperOf({ lease, signal, words }: KeptProgram): {
  readonly script: string
  readonly args: readonly string[]
} {
  return { script: KEEPER, args: [lease, signal, ...words] }
}

/**
 * A program on another machine, through ssh, whose life is tied to ours: see
 * SshLink.start(). Its output must be read for it to end.
 */
export class RemoteProgram implements AsyncDisposable {
  readonly stdin: Writable
  readonly stdout: Readable
  readonly stderr: Readable
  /** Its exit code: 127 where there is no such program, 255 where the connection was lost. */
  readonly ended: Promise<number>
  readonly #child: ChildProcessWithoutNullStreams

  constructor(child: ChildProcessWithoutNullStreams) {
    this.#child = child
    this.stdin = child.stdin
    this.stdout = child.stdout
    this.stderr = child.stderr
    child.stdin.on('error', () => undefined)
    this.ended = new Promise(done => {
      child.once('error', () => done(255))
      child.once('close', code => done(code ?? 255))
    })
  }

  /** Ends it with its signal; resolves when it has ended, or when the connection has. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.stdin.end()
    this.#child.stdout.resume()
    this.#child.stderr.resume()
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), END_TIMEOUT_MS)
    await this.ended
    clearTimeout(timer)
  }
}
