/**
 * The candidate most like `word`, for "did you mean"; undefined when none is
 * near enough to be worth saying. Case does not count as a difference.
 */
export function suggest(word: string, candidates: Iterable<string>): string | undefined {
  const wanted = word.toLowerCase()
  // One slip in four letters: "dayly" finds "daily", "x" finds nothing.
  const limit = Math.max(1, Math.floor(wanted.length / 3))
  let best: string | undefined
  let bestDistance = Infinity
  for (const candidate of candidates) {
    const lower = candidate.toLowerCase()
    // A word that was cut short is one slip.
    const isCut = wanted.length >= 3 && lower.startsWith(wanted)
    const distance = isCut ? Math.min(1, editDistance(wanted, lower)) : editDistance(wanted, lower)
    if (distance < bestDistance && distance <= limit && distance < lower.length) {
      best = candidate
      bestDistance = distance
    }
  }
  return best
}

/** ` Did you mean "daily"?`, or nothing; to be put after a sentence. */
export function didYouMean(word: string, candidates: Iterable<string>): string {
  const found = suggest(word, candidates)
  return found === undefined ? '' : ` Did you mean "${found}"?`
}

/** How many letters must be inserted, deleted, replaced or swapped with their neighbour to get from `a` to `b`. */
export function editDistance(a: string, b: string): number {
  let beforeLast: number[] = []
  let last = Array.from({ length: b.length + 1 }, (_, column) => column)
  for (let row = 1; row <= a.length; row++) {
    const current = [row]
    for (let column = 1; column <= b.length; column++) {
      const same = a[row - 1] === b[column - 1]
      let cost = Math.min(
        (last[column] ?? 0) + 1,
        (current[column - 1] ?? 0) + 1,
        (last[column - 1] ?? 0) + (same ? 0 : 1),
      )
      if (row > 1 && column > 1 && a[row - 1] === b[column - 2] && a[row - 2] === b[column - 1]) {
        cost = Math.min(cost, (beforeLast[column - 2] ?? 0) + 1)
      }
      current.push(cost)
    }
    beforeLast = last
    last = current
  }
  return last[b.length] ?? 0
}
