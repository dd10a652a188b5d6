/** Crashes on a broken assumption of the program itself. `message` starts with the invariant's number where it has one. */
export function invariant(condition: unknown, message: string): asserts condition {
  if (!condition) throw new Error(`bug: ${message}`)
}

/** Ends an exhaustive switch. */
export function unreachable(value: never): never {
  throw new Error(`bug: unexpected ${JSON.stringify(value)}`)
}
