import { execFile } from 'node:child_process'
import { promisify } from 'node:util'

import { BackupError } from '../base/errors.js'
import type { FileOwner } from './image-writer.js'

const ANSWER_TIMEOUT_MS = 10_000

/**
 * Owner in `user:group`, `user` (with the user's own group) or numbers, as
 * this host's databases know them, or another's. Rejects with E_USAGE, E_NOT_FOUND.
 */
export async function resolveOwner(
  text: string,
  host: { readonly name: string; readonly lookUp: LookUp } = { name: 'this host', lookUp },
): Promise<FileOwner> {
  const match = /^([^:\s]+)(?::([^:\s]+))?$/.exec(text)
  const [, user, group] = match ?? []
  if (user === undefined) {
    throw new BackupError('E_USAGE', `"${text}" is no owner`, { hints: ['write user:group: libvirt-qemu:kvm'] })
  }
  const found = await host.lookUp('passwd', user)
  const uid = numberIn(user) ?? numberIn(found?.[2])
  if (uid === undefined) throw new BackupError('E_NOT_FOUND', `${host.name} has no user ${user}`)
  const gid =
    group === undefined ? numberIn(found?.[3]) : (numberIn(group) ?? numberIn((await host.lookUp('group', group))?.[2]))
  if (gid === undefined) throw new BackupError('E_NOT_FOUND', `${host.name} has no group ${group ?? `for ${user}`}`)
  return { uid, gid }
}

/** Fields of an entry; undefined where there is none. */
type LookUp = (database: 'passwd' | 'group', key: string) => Promise<readonly string[] | undefined>

/** `getent` also asks LDAP and the like. */
async function lookUp(database: 'passwd' | 'group', key: string): Promise<readonly string[] | undefined> {
  try {
    const { stdout } = await promisify(execFile)('getent', ['--', database, key], { timeout: ANSWER_TIMEOUT_MS })
    return stdout.trim().split(':')
  } catch {
    return undefined
  }
}

function numberIn(text: string | undefined): number | undefined {
  return text !== undefined && /^\d{1,10}$/.test(text) ? Number(text) : undefined
}
