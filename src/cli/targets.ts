import { homedir } from 'node:os'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

import { BackupError } from '../base/errors.js'
import type { RawConfig, RawTarget } from '../config/schema.js'
import { parseSize } from '../model/size.js'
import { didYouMean } from '../model/suggest.js'
import { redactUrls } from './error-report.js'

/** Where a store is. */
export interface TargetPlace {
  /** As the user named it. */
  readonly name: string
  readonly path: string
  /** Where its index is, when not in the store. */
  readonly indexDirectory?: string | undefined
  /** Bytes per second, of all that is written to it or read back. */
  readonly bwlimit?: number | undefined
  readonly encryption: TargetEncryption
}

/** What the configuration says of a target's encryption; `section` says where the passphrase is. */
export type TargetEncryption =
  | { readonly kind: 'unsaid' | 'none' }
  | { readonly kind: 'passphrase'; readonly section: object }

/** True for what is a place by itself, so that no configuration is needed to find it. */
export function isPlace(target: string): boolean {
  return target.includes('/') || target === '.' || target === '..' || /^[a-z][a-z0-9+.-]*:/i.test(target)
}

/**
 * The place that `target` names: a path, a URL, or a name of the
 * configuration; undefined takes the configuration's default or only target.
 * Throws E_USAGE where nothing is named, E_NOT_FOUND for a name that is not
 * configured, E_UNSUPPORTED for a kind of store that is not known.
 */
export function targetPlace(target: string | undefined, config: RawConfig): TargetPlace {
  const wanted = target ?? defaultTarget(config)
  if (isPlace(wanted)) return { name: wanted, path: pathOf(wanted), encryption: { kind: 'unsaid' } }
  const configured = config.targets?.[wanted]
  if (configured === undefined) {
    const names = Object.keys(config.targets ?? {})
    throw new BackupError('E_NOT_FOUND', `no target "${wanted}" is configured.${didYouMean(wanted, names)}`, {
      why: names.length === 0 ? 'the configuration has no targets' : `it has ${names.join(', ')}`,
      hints: [`for a directory of that name write ./${wanted}`],
    })
  }
  if (configured.path === undefined) throw unsupported(`target ${wanted}`)
  const { encryption } = configured
  return {
    name: wanted,
    path: pathOf(configured.path),
    indexDirectory: configured.index_dir,
    bwlimit: typeof configured.bwlimit === 'string' ? parseSize(configured.bwlimit) : configured.bwlimit,
    encryption: encryptionOf(encryption),
  }
}

function encryptionOf(said: RawTarget['encryption']): TargetEncryption {
  if (said === undefined) return { kind: 'unsaid' }
  return said === 'none' ? { kind: 'none' } : { kind: 'passphrase', section: said }
}

function defaultTarget(config: RawConfig): string {
  const [first] = config.default?.targets ?? (config.default?.target === undefined ? [] : [config.default.target])
  const [only, another] = Object.keys(config.targets ?? {})
  const found = first ?? (another === undefined ? only : undefined)
  if (found !== undefined) return found
  throw new BackupError('E_USAGE', 'no store was named', {
    why:
      only === undefined
        ? 'neither -t nor VIRTVAULT_TARGET says where the store is, and the configuration has no target'
        : 'the configuration has several targets and no default',
    hints: ['name it: -t /srv/backup', 'or once for all: export VIRTVAULT_TARGET=/srv/backup'],
  })
}

function pathOf(target: string): string {
  const scheme = /^([a-z][a-z0-9+.-]*):/i.exec(target)?.[1]?.toLowerCase()
  if (scheme === undefined) return target.startsWith('~/') ? join(homedir(), target.slice(2)) : resolve(target)
  if (scheme !== 'file') throw unsupported(redactUrls(target))
  try {
    return fileURLToPath(target)
  } catch (cause) {
    throw new BackupError('E_USAGE', `${target} is not the URL of a local directory`, { cause })
  }
}

function unsupported(what: string): BackupError {
  return new BackupError('E_UNSUPPORTED', `stores like ${what} are not supported`, {
    hints: ['use a path of a local or mounted file system'],
  })
}
