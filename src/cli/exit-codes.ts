import type { ErrorCode } from '../base/errors.js'

/** Exit codes of the program; documented in README.md and docs/errors.md. Callers treat an unknown one as a failure. */
export const EXIT = {
  ok: 0,
  failed: 1,
  usage: 2,
  partial: 3,
  notFound: 4,
  hypervisor: 5,
  domain: 6,
  damage: 7,
  noStore: 10,
  locked: 11,
  key: 12,
  noSpace: 13,
  unreachable: 14,
  refused: 15,
  timeout: 16,
  stale: 20,
  unknownCommand: 127,
} as const

/** What each number means, for help texts and docs. */
export const EXIT_MEANINGS: readonly (readonly [code: number, meaning: string])[] = [
  [EXIT.ok, 'done, all that was asked for is true'],
  [EXIT.failed, 'failed, nothing usable made'],
  [EXIT.usage, 'usage or configuration error'],
  [EXIT.partial, 'partial: some domains or disks failed, or a required warning'],
  [EXIT.notFound, 'not found: domain, point, group or target'],
  [EXIT.hypervisor, 'hypervisor: cannot connect, denied or too old'],
  [EXIT.domain, 'state of the domain or its guest: agent, block job, no disk that can be backed up'],
  [EXIT.damage, 'damage found'],
  [EXIT.noStore, 'the store does not exist'],
  [EXIT.locked, 'store or job locked'],
  [EXIT.key, 'wrong passphrase, or key missing'],
  [EXIT.noSpace, 'no space in the store or for scratch files'],
  [EXIT.unreachable, 'store or network unreachable'],
  [EXIT.refused, 'refused: needs --yes, a hold, something is in the way'],
  [EXIT.timeout, 'timed out'],
  [EXIT.stale, 'status --check: stale or failed'],
  [EXIT.unknownCommand, 'unknown command'],
  [129, 'ended by SIGHUP, cleaned up'],
  [130, 'ended by SIGINT, cleaned up'],
  [143, 'ended by SIGTERM, cleaned up'],
]

const EXIT_OF_ERROR: Record<ErrorCode, number> = {
  E_USAGE: EXIT.usage,
  E_CONFIG: EXIT.usage,
  E_REFUSED: EXIT.refused,
  E_EXISTS: EXIT.refused,
  E_NOT_FOUND: EXIT.notFound,
  E_UNSUPPORTED: EXIT.failed,
  E_LIBVIRT: EXIT.hypervisor,
  E_LIBVIRT_CONNECT: EXIT.hypervisor,
  E_LIBVIRT_DENIED: EXIT.hypervisor,
  E_LIBVIRT_STUCK: EXIT.hypervisor,
  E_DOMAIN_STATE: EXIT.domain,
  E_DOMAIN_BUSY: EXIT.domain,
  E_NO_DISK: EXIT.domain,
  E_AGENT: EXIT.domain,
  E_SOURCE_GONE: EXIT.domain,
  E_CHAIN_BROKEN: EXIT.domain,
  E_BITMAP_MISMATCH: EXIT.domain,
  E_NBD: EXIT.unreachable,
  E_NBD_PROTOCOL: EXIT.failed,
  E_NBD_READ: EXIT.failed,
  E_NO_STORE: EXIT.noStore,
  E_STORE_FORMAT: EXIT.failed,
  E_DAMAGED: EXIT.damage,
  E_LOCKED: EXIT.locked,
  E_KEY: EXIT.key,
  E_NO_SPACE: EXIT.noSpace,
  E_IO: EXIT.failed,
  E_UNREACHABLE: EXIT.unreachable,
  E_TIMEOUT: EXIT.timeout,
  E_TOOL_MISSING: EXIT.failed,
  E_HOOK: EXIT.failed,
  E_INTERRUPTED: 130,
  E_INTERNAL: EXIT.failed,
}

export function exitOfError(code: ErrorCode): number {
  return EXIT_OF_ERROR[code]
}

/** How one of several things ended, as far as the exit code cares. */
export type ItemOutcome =
  | { readonly status: 'success' | 'skipped' }
  | { readonly status: 'partial' }
  | { readonly status: 'failed'; readonly exit: number }

/**
 * The exit code of a run over several things: all failed with the same code,
 * that code; failed with different ones, 1; some worked or are partial, 3.
 */
export function exitOfItems(items: readonly ItemOutcome[]): number {
  const failures = items.flatMap(item => (item.status === 'failed' ? [item.exit] : []))
  const isPartial = items.some(item => item.status === 'partial')
  if (failures.length === 0) return isPartial ? EXIT.partial : EXIT.ok
  if (failures.length < items.length) return EXIT.partial
  const [first = EXIT.failed] = failures
  return failures.every(code => code === first) ? first : EXIT.failed
}
