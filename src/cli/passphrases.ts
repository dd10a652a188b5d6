import { Writable } from 'node:stream'
import { createInterface } from 'node:readline/promises'

import { BackupError } from '../base/errors.js'
import { type SecretSource, resolveSecret, secretFromEnv, secretSourceOf } from '../config/secrets.js'
import { keepFromDescriptor, secretEnvironment } from './secret-env.js'
import type { RunContext } from './session.js'
import type { TargetPlace } from './targets.js'

/** Of the store; `_FILE`, `_COMMAND` and `_FD` too. */
const CURRENT = 'VIRTVAULT_PASSPHRASE'
/** Of a new key slot, likewise. */
const NEW = 'VIRTVAULT_NEW_PASSPHRASE'

/** Whether variables or the configuration give a passphrase for the store: then it has to be encrypted. */
export function isPassphraseGiven(place: TargetPlace): boolean {
  if (place.encryption.kind === 'none') return false
  return place.encryption.kind === 'passphrase' || inEnvironment(CURRENT)
}

/**
 * The passphrase of a store: from variables, then the configuration, then a
 * person at the terminal; undefined where there is none of them. Rejects with
 * E_CONFIG.
 */
export async function storePassphrase(session: RunContext, place: TargetPlace): Promise<string | undefined> {
  const { encryption } = place
  const source = encryption.kind === 'passphrase' ? secretSourceOf(encryption.section, 'passphrase') : undefined
  const name = `passphrase of ${place.name}`
  return (await resolved(session, { name, variable: CURRENT, source })) ?? (await askHidden(session, `The ${name}: `))
}

/** The first passphrase of a new store: as storePassphrase(), typed twice. Rejects with E_USAGE where nobody gives one. */
export async function firstPassphrase(session: RunContext, place: TargetPlace): Promise<string> {
  const { encryption } = place
  const source = encryption.kind === 'passphrase' ? secretSourceOf(encryption.section, 'passphrase') : undefined
  const name = `passphrase for ${place.name}`
  return (await resolved(session, { name, variable: CURRENT, source })) ?? (await askTwice(session, CURRENT))
}

/** The passphrase of a new key slot. Rejects with E_USAGE where nobody gives one, E_CONFIG. */
export async function newPassphrase(session: RunContext): Promise<string> {
  return (await resolved(session, { name: 'new passphrase', variable: NEW })) ?? (await askTwice(session, NEW))
}

/** An exported key, from a file, `-` for standard input, or typed. Rejects with E_CONFIG, E_USAGE. */
export async function exportedKey(session: RunContext, file: string | undefined): Promise<string> {
  if (file !== undefined) {
    const source: SecretSource = file === '-' ? { fd: 0 } : { file }
    const text = await resolved(session, { name: 'exported key', source })
    if (text !== undefined) return text
  }
  const typed = await ask(session, 'The exported key (VVKEY1-…): ', 'shown')
  if (typed !== undefined) return typed
  throw new BackupError('E_USAGE', 'no exported key was given', { hints: ['--from FILE, or --from - for stdin'] })
}

interface Wanted {
  readonly name: string
  readonly variable?: string | undefined
  readonly source?: SecretSource | undefined
}

async function resolved(session: RunContext, wanted: Wanted): Promise<string | undefined> {
  const found = await resolveSecret({ ...wanted, env: secretEnvironment() }, session.signal)
  for (const warning of found?.warnings ?? []) session.warn(warning)
  if (found !== undefined && wanted.variable !== undefined) keepFromDescriptor(wanted.variable, found.secret)
  return found?.secret
}

function inEnvironment(variable: string): boolean {
  return Object.values(secretFromEnv(variable, secretEnvironment())).some(value => value !== undefined)
}

async function askTwice(session: RunContext, variable: string): Promise<string> {
  const first = await askHidden(session, 'A new passphrase: ')
  if (first === undefined) {
    throw new BackupError('E_USAGE', 'no new passphrase was given', {
      hints: [`export ${variable}_FILE=/etc/virtvault/store.key`, `or ${variable}_COMMAND, or ${variable}_FD`],
    })
  }
  if (first === '') throw new BackupError('E_USAGE', 'an empty passphrase protects nothing')
  const again = await askHidden(session, 'Once more: ')
  if (first !== again) throw new BackupError('E_USAGE', 'the passphrases differ: nothing was changed')
  return first
}

function askHidden(session: RunContext, question: string): Promise<string | undefined> {
  return ask(session, question, 'hidden')
}

/** undefined where no person is there to answer. */
export async function ask(
  session: RunContext,
  question: string,
  echo: 'shown' | 'hidden',
): Promise<string | undefined> {
  if (!process.stdin.isTTY || !process.stderr.isTTY || session.settings.json) return undefined
  const nowhere = new Writable({ write: (_chunk, _encoding, done) => done() })
  const output = echo === 'shown' ? process.stderr : nowhere
  const terminal = createInterface({ input: process.stdin, output, terminal: true, historySize: 0 })
  // A terminal that does not echo sends no signal either.
  terminal.on('SIGINT', () => process.kill(process.pid, 'SIGINT'))
  try {
    if (echo === 'hidden') process.stderr.write(question)
    return await terminal.question(echo === 'shown' ? question : '', { signal: session.signal })
  } finally {
    terminal.close()
    if (echo === 'hidden') process.stderr.write('\n')
  }
}
