/** Longest part of a file name taken from a recovery point; leaves room for suffixes within 255 bytes. */
const MAX_NAME_LENGTH = 100
const PLAIN = /^[A-Za-z0-9][A-Za-z0-9._-]*$/

/**
 * Names of a recovery point (domains, disk targets, blobs) as names of files,
 * one for each, in order.
 *
 * A recovery point is bytes from outside: a name may hold slashes, dots or
 * control characters. Plain names stay as they are; of others only harmless
 * characters stay, behind `fallback` and their number. No two are equal, also
 * where a file system ignores case.
 */
export function fileNames(names: readonly string[], fallback: string): readonly string[] {
  const taken = new Set<string>()
  return names.map((name, i) => {
    let candidate = plainName(name) ?? `${fallback}-${i}${escaped(name)}`
    while (taken.has(candidate.toLowerCase())) candidate = `${fallback}-${i}-${candidate}`
    taken.add(candidate.toLowerCase())
    return candidate
  })
}

function plainName(name: string): string | undefined {
  return PLAIN.test(name) && name.length <= MAX_NAME_LENGTH ? name : undefined
}

function escaped(name: string): string {
  const kept = name.replaceAll(/[^A-Za-z0-9_-]+/g, '_').slice(0, MAX_NAME_LENGTH / 2)
  return kept === '' ? '' : `-${kept}`
}
