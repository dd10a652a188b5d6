import { BackupError } from '../base/errors.js'
import type { RemoteProgram } from './remote-program.js'
import type { SshLink } from './ssh-link.js'

const MAX_ANSWER_CHARS = 1024 * 1024
/** What ssh itself ends with where it does not get through. */
const NOT_THROUGH = 255

export interface ShellAnswer {
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

/** What runs is ended with all its children: sshd gives a session a group of processes. A shell notices signals while it waits. */
const ENDING = `
trap 'trap "" TERM; kill -TERM 0; exit 143' TERM
(main "$@") </dev/null &
wait $!`

/**
 * As SshLink.run(), for as long as it takes. When `signal` is aborted, it
 * rejects with its reason after all that the script had begun over there was ended.
 */
export async function runThere(
  link: SshLink,
  script: string,
  args: readonly string[],
  signal?: AbortSignal,
): Promise<ShellAnswer> {
  signal?.throwIfAborted()
  await using program = await link.start(['sh', '-c', `main() {\n${script}\n}\n${ENDING}`, 'sh', ...args], 'TERM')
  const end = () => program.stdin.end()
  signal?.addEventListener('abort', end, { once: true })
  try {
    const answer = await answerOf(link, program)
    signal?.throwIfAborted()
    return answer
  } finally {
    signal?.removeEventListener('abort', end)
  }
}

/**
 * As runThere(), with bytes on standard input. The script takes as many as there
 * are, not to the end of its input: the end is ours, upon which it is ended.
 */
export async function feedThere(
  link: SshLink,
  script: string,
  args: readonly string[],
  bytes: Uint8Array,
): Promise<ShellAnswer> {
  await using program = await link.start(['sh', '-c', script, 'sh', ...args], 'TERM')
  program.stdin.write(bytes)
  return await answerOf(link, program)
}

async function answerOf(link: SshLink, program: RemoteProgram): Promise<ShellAnswer> {
  let stdout = ''
  let stderr = ''
  const take = (text: string, part: Buffer) => (text + part.toString()).slice(-MAX_ANSWER_CHARS)
  program.stdout.on('data', (part: Buffer) => (stdout = take(stdout, part)))
  program.stderr.on('data', (part: Buffer) => (stderr = take(stderr, part)))
  const code = await program.ended
  if (code !== NOT_THROUGH) return { code, stdout, stderr }
  if (link.lost.aborted) throw link.lost.reason
  throw new BackupError('E_UNREACHABLE', `${link.host}: the ssh session has ended`, { why: stderr.trim() || undefined })
}
