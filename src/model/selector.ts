import { BackupError } from '../base/errors.js'
import type { DomainRef } from './recovery-point.js'
import { didYouMean } from './suggest.js'

/**
 * Which domains are meant: an exact name, a UUID, a glob `web*`, `r:REGEX`, and
 * `!x` to leave out. The same on the command line and under `hosts:`, and as
 * virt-backup has it: the order does not matter, leaving out always wins.
 */

export interface DomainSelector {
  readonly text: string
  readonly excludes: boolean
  /** How precisely it points: an exact name says more than a pattern. */
  readonly kind: 'exact' | 'pattern'
  matches(domain: DomainRef): boolean
}

export interface SelectionRequest {
  readonly selectors: readonly string[]
  readonly groups?: readonly string[] | undefined
  readonly all?: boolean | undefined
}

export interface Selection {
  /** In the order in which the domains were given, each once. */
  readonly domains: readonly DomainRef[]
  /** Exclusions that leave nothing out, worth a warning: they may be misspelt. */
  readonly idleExclusions: readonly string[]
}

/** Throws E_USAGE for an empty selector and for an expression that cannot be read. */
export function parseSelector(text: string): DomainSelector {
  const excludes = text.startsWith('!')
  const body = excludes ? text.slice(1) : text
  if (body === '' || body === 'r:') throw new BackupError('E_USAGE', `"${text}" selects nothing: a name must follow`)
  const base = { text, excludes }
  if (body.startsWith('r:')) {
    const pattern = compileRegex(body.slice(2))
    return { ...base, kind: 'pattern', matches: domain => pattern.test(domain.name) }
  }
  const isExact = (domain: DomainRef) => domain.name === body || domain.uuid === body.toLowerCase()
  if (!/[*?[]/.test(body)) return { ...base, kind: 'exact', matches: isExact }
  const glob = compileGlob(body)
  // A name may contain a bracket: the exact name always counts.
  return { ...base, kind: 'pattern', matches: domain => isExact(domain) || glob.test(domain.name) }
}

/** Whether a list such as `hosts:` includes the domain. */
export function isSelected(domain: DomainRef, selectors: readonly DomainSelector[]): boolean {
  const matching = selectors.filter(selector => selector.matches(domain))
  return matching.length > 0 && !matching.some(selector => selector.excludes)
}

/**
 * The domains that a request means. `groups` holds each group's `hosts:`.
 *
 * Throws E_NOT_FOUND when a selector, a group or the whole request comes to
 * nothing, so that a misspelt name never looks like a finished backup, and
 * E_USAGE when only exclusions were given.
 */
export function selectDomains(
  domains: readonly DomainRef[],
  request: SelectionRequest,
  groups: ReadonlyMap<string, readonly string[]>,
): Selection {
  const selectors = request.selectors.map(parseSelector)
  const excluding = selectors.filter(selector => selector.excludes)
  const including = selectors.filter(selector => !selector.excludes)
  const groupNames = request.groups ?? []
  if (including.length === 0 && groupNames.length === 0 && request.all !== true) {
    const why = excluding.length > 0 ? 'only exclusions were given' : undefined
    throw new BackupError('E_USAGE', 'no domain was chosen', {
      why,
      hints: ['name domains, a group with -g, or say --all'],
    })
  }

  const chosen = new Set<DomainRef>(request.all === true ? domains : [])
  for (const selector of including) {
    const found = domains.filter(domain => selector.matches(domain))
    if (found.length === 0) throw nothingMatches(selector.text, domains)
    for (const domain of found) chosen.add(domain)
  }
  for (const name of groupNames) {
    for (const domain of domainsOfGroup(name, domains, groups)) chosen.add(domain)
  }

  const left = domains.filter(domain => chosen.has(domain) && !excluding.some(selector => selector.matches(domain)))
  if (left.length === 0) {
    throw new BackupError('E_NOT_FOUND', 'no domain is left to work on', {
      why: chosen.size === 0 ? 'the hypervisor has no domain' : `all ${chosen.size} chosen domains were left out again`,
    })
  }
  const idle = excluding.filter(selector => ![...chosen].some(domain => selector.matches(domain)))
  return { domains: left, idleExclusions: idle.map(selector => selector.text) }
}

function domainsOfGroup(
  name: string,
  domains: readonly DomainRef[],
  groups: ReadonlyMap<string, readonly string[]>,
): readonly DomainRef[] {
  const hosts = groups.get(name)
  if (hosts === undefined) {
    throw new BackupError('E_NOT_FOUND', `there is no group "${name}".${didYouMean(name, groups.keys())}`)
  }
  const selectors = hosts.map(parseSelector)
  const found = domains.filter(domain => isSelected(domain, selectors))
  if (found.length > 0) return found
  throw new BackupError('E_NOT_FOUND', `no domain belongs to the group "${name}"`, {
    why: hosts.length === 0 ? 'it lists no hosts' : `none fits ${hosts.map(host => `"${host}"`).join(', ')}`,
  })
}

function nothingMatches(text: string, domains: readonly DomainRef[]): BackupError {
  const names = domains.map(domain => domain.name)
  return new BackupError('E_NOT_FOUND', `no domain matches "${text}".${didYouMean(text, names)}`, {
    hints: ['virsh list --all shows the domains'],
  })
}

/** Python's `re.match`, which virt-backup uses: anchored at the beginning of the name, not at its end. */
function compileRegex(source: string): RegExp {
  const inline = /^\(\?([is]+)\)/.exec(source)
  const translated = source
    .slice(inline?.[0].length ?? 0)
    .replaceAll('(?P<', '(?<')
    .replaceAll(/\(\?P=(\w+)\)/g, String.raw`\k<$1>`)
    .replaceAll(String.raw`\A`, '^')
    .replaceAll(String.raw`\Z`, '$')
  try {
    return new RegExp(`^(?:${translated})`, inline?.[1] ?? '')
  } catch (cause) {
    throw new BackupError('E_USAGE', `"r:${source}" is not a regular expression`, {
      why: cause instanceof Error ? cause.message : undefined,
      cause,
    })
  }
}

/** `*` any characters, `?` one, `[abc]` and `[!abc]` one of a set. */
function compileGlob(glob: string): RegExp {
  let source = ''
  for (let at = 0; at < glob.length; at++) {
    const char = glob[at] ?? ''
    const set = /^\[(!?)([^\]]+)\]/.exec(glob.slice(at))
    if (char === '*') source += '.*'
    else if (char === '?') source += '.'
    else if (set?.[1] !== undefined && set[2] !== undefined) {
      source += `[${set[1] === '!' ? '^' : ''}${set[2].replaceAll(/[\\^[]/g, String.raw`\$&`)}]`
      at += set[0].length - 1
    } else source += char.replaceAll(/[\\^$.*+?()[\]{}|]/g, String.raw`\$&`)
  }
  try {
    return new RegExp(`^${source}$`, 's')
  } catch (cause) {
    throw new BackupError('E_USAGE', `"${glob}" is not a pattern`, { cause })
  }
}
