import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { join } from 'node:path'

import { BackupError, messageOf } from '../base/errors.js'
import type { Warning } from '../base/errors.js'
import type { Environment } from './load.js'

/**
 * Secrets: from a file descriptor, a file, a command, a systemd credential or
 * the value itself. No message ever holds one, nor the output of the command.
 */

/** How one secret is given; at most one way. */
export interface SecretSource {
  readonly value?: string | undefined
  readonly file?: string | undefined
  readonly command?: string | undefined
  /** Name of a credential in `$CREDENTIALS_DIRECTORY`. */
  readonly credential?: string | undefined
  /** File descriptor that this process inherited. */
  readonly fd?: number | undefined
}

export interface SecretRequest {
  /** For messages: `passphrase of target nas`. */
  readonly name: string
  /** From the configuration. */
  readonly source?: SecretSource | undefined
  /** `VIRTVAULT_PASSPHRASE` also reads `…_FD`, `…_FILE` and `…_COMMAND`; it goes before the configuration. */
  readonly variable?: string | undefined
  readonly env: Environment
}

export interface ResolvedSecret {
  readonly secret: string
  readonly warnings: readonly Warning[]
}

const MAX_SECRET_BYTES = 64 * 1024
const COMMAND_TIMEOUT_MS = 60_000
const READABLE_BY_GROUP = 0o070
const REACHABLE_BY_ALL = 0o007

/**
 * The secret, or undefined when it is given nowhere. One trailing newline is
 * taken off, as editors and `echo` put it there.
 *
 * Throws E_CONFIG when it is given in two ways, cannot be read, is empty, or
 * stands in a file that everybody can read; a file that its group can read is
 * a warning. A running command is killed when `signal` aborts.
 */
export async function resolveSecret(request: SecretRequest, signal: AbortSignal): Promise<ResolvedSecret | undefined> {
  const fromEnv = request.variable === undefined ? {} : secretFromEnv(request.variable, request.env)
  const source = waysIn(fromEnv).length > 0 ? fromEnv : (request.source ?? {})
  const [way, another] = waysIn(source)
  if (way === undefined) return undefined
  if (another !== undefined) throw unusable(request, `it is given in two ways, ${way} and ${another}: keep one of them`)

  const { text, warnings } = await readWay(request, source, signal)
  const secret = text.replace(/\r?\n$/, '')
  if (secret === '') throw unusable(request, `its ${way} is empty`)
  return { secret, warnings }
}

/** What `VIRTVAULT_PASSPHRASE`, `_FD`, `_FILE` and `_COMMAND` say. Empty variables count as not set. */
export function secretFromEnv(variable: string, env: Environment): SecretSource {
  const read = (suffix: string) => (env[variable + suffix] === '' ? undefined : env[variable + suffix])
  const fd = read('_FD')
  return {
    value: read(''),
    file: read('_FILE'),
    command: read('_COMMAND'),
    fd: fd === undefined ? undefined : /^\d{1,9}$/.test(fd) ? Number(fd) : NaN,
  }
}

/** What `passphrase`, `passphrase_file`, `passphrase_command` and `passphrase_credential` of a checked section say. */
export function secretSourceOf(section: object, key: string): SecretSource {
  const entries = new Map<string, unknown>(Object.entries(section))
  const read = (suffix: string) => {
    const value = entries.get(key + suffix)
    return typeof value === 'string' ? value : undefined
  }
  return { value: read(''), file: read('_file'), command: read('_command'), credential: read('_credential') }
}

function waysIn(source: SecretSource): readonly string[] {
  const ways = [
    source.fd === undefined ? undefined : 'file descriptor',
    source.file === undefined ? undefined : 'file',
    source.command === undefined ? undefined : 'command',
    source.credential === undefined ? undefined : 'credential',
    source.value === undefined ? undefined : 'value',
  ]
  return ways.filter(way => way !== undefined)
}

type Reading = { readonly text: string; readonly warnings: readonly Warning[] }

async function readWay(request: SecretRequest, source: SecretSource, signal: AbortSignal): Promise<Reading> {
  if (source.fd !== undefined) return { text: readDescriptor(request, source.fd), warnings: [] }
  if (source.file !== undefined) return readSecretFile(request, source.file)
  if (source.command !== undefined) return { text: await runCommand(request, source.command, signal), warnings: [] }
  if (source.credential !== undefined) return readSecretFile(request, credentialPath(request, source.credential))
  return { text: source.value ?? '', warnings: [] }
}

function readDescriptor(request: SecretRequest, fd: number): string {
  if (!Number.isSafeInteger(fd)) throw unusable(request, 'its file descriptor is not a number')
  try {
    return checkedText(request, readFileSync(fd))
  } catch (error) {
    if (error instanceof BackupError) throw error
    throw unusable(request, `file descriptor ${fd} cannot be read: ${messageOf(error)}`, error)
  }
}

function credentialPath(request: SecretRequest, name: string): string {
  const folder = request.env['CREDENTIALS_DIRECTORY']
  if (folder === undefined || folder === '') {
    throw unusable(request, `the credential ${name} needs systemd: $CREDENTIALS_DIRECTORY is not set`)
  }
  if (name.includes('/') || name === '..' || name === '.')
    throw unusable(request, `"${name}" is not a credential's name`)
  return join(folder, name)
}

async function readSecretFile(request: SecretRequest, file: string): Promise<Reading> {
  try {
    await using handle = await open(file, 'r')
    // Of the open file, not of the name: it cannot be exchanged in between.
    const { mode } = await handle.stat()
    if ((mode & REACHABLE_BY_ALL) !== 0) {
      throw unusable(request, `everybody can read ${file}`, undefined, [`chmod 600 ${file}`])
    }
    const bytes = Buffer.alloc(MAX_SECRET_BYTES + 1)
    const { bytesRead } = await handle.read(bytes, 0, bytes.length)
    const warnings: Warning[] = []
    if ((mode & READABLE_BY_GROUP) !== 0) {
      warnings.push({
        code: 'W_CONFIG_FILE',
        message: `the group of ${file} can read the ${request.name}: chmod 600 ${file}`,
      })
    }
    return { text: checkedText(request, bytes.subarray(0, bytesRead)), warnings }
  } catch (error) {
    if (error instanceof BackupError) throw error
    throw unusable(request, `${file} cannot be read: ${messageOf(error)}`, error)
  }
}

function runCommand(request: SecretRequest, command: string, signal: AbortSignal): Promise<string> {
  return new Promise((resolve, reject) => {
    const options = {
      signal,
      timeout: COMMAND_TIMEOUT_MS,
      maxBuffer: MAX_SECRET_BYTES,
      encoding: 'buffer' as const,
      env: withoutSecrets(request.env),
    }
    execFile('/bin/sh', ['-c', command], options, (error, stdout) => {
      try {
        if (signal.aborted) throw new BackupError('E_INTERRUPTED', 'interrupted', { cause: signal.reason })
        // Neither the command's words nor its output: both may hold the secret.
        if (error !== null)
          throw unusable(
            request,
            `its command failed (${error.killed === true ? 'killed' : `exit ${error.code ?? '?'}`})`,
          )
        resolve(checkedText(request, stdout))
      } catch (failure) {
        reject(failure instanceof Error ? failure : new Error(String(failure)))
      }
    })
  })
}

/** A command that gives one secret is told no other. */
function withoutSecrets(env: Environment): Record<string, string | undefined> {
  return Object.fromEntries(Object.entries(env).filter(([name]) => !/^VIRTVAULT_(?:[A-Z]+_)?PASSPHRASE$/.test(name)))
}

function checkedText(request: SecretRequest, bytes: Buffer): string {
  if (bytes.length > MAX_SECRET_BYTES) throw unusable(request, 'it is too long')
  return bytes.toString('utf8')
}

function unusable(request: SecretRequest, why: string, cause?: unknown, hints: readonly string[] = []): BackupError {
  return new BackupError('E_CONFIG', `the ${request.name} cannot be used: ${why}`, { cause, hints })
}
