/** One line of a comparison. */
export interface DiffLine {
  readonly sign: ' ' | '-' | '+'
  readonly text: string
}

/** Lines compared against each other at most; beyond, what lies between the common ends counts as replaced. */
const MAX_TABLE = 4_000_000

/** Lines that differ between two texts, by longest common subsequence; lines that are the same are left out. */
export function changedLines(a: string, b: string): readonly DiffLine[] {
  const [linesA, linesB] = [a.split('\n'), b.split('\n')]
  let start = 0
  while (start < linesA.length && start < linesB.length && linesA[start] === linesB[start]) start++
  let [endA, endB] = [linesA.length, linesB.length]
  while (endA > start && endB > start && linesA[endA - 1] === linesB[endB - 1]) {
    endA--
    endB--
  }
  const [partA, partB] = [linesA.slice(start, endA), linesB.slice(start, endB)]
  if (partA.length * partB.length > MAX_TABLE) {
    return [...partA.map(text => ({ sign: '-' as const, text })), ...partB.map(text => ({ sign: '+' as const, text }))]
  }
  return compare(partA, partB)
}

function compare(a: readonly string[], b: readonly string[]): readonly DiffLine[] {
  const width = b.length + 1
  const common = new Uint32Array((a.length + 1) * width)
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      common[i * width + j] =
        a[i] === b[j]
          ? (common[(i + 1) * width + j + 1] ?? 0) + 1
          : Math.max(common[(i + 1) * width + j] ?? 0, common[i * width + j + 1] ?? 0)
    }
  }
  const lines: DiffLine[] = []
  let [i, j] = [0, 0]
  while (i < a.length || j < b.length) {
    const [left, right] = [a[i], b[j]]
    if (left !== undefined && left === right) {
      i++
      j++
    } else if (
      left !== undefined &&
      (right === undefined || (common[(i + 1) * width + j] ?? 0) >= (common[i * width + j + 1] ?? 0))
    ) {
      lines.push({ sign: '-', text: left })
      i++
    } else if (right !== undefined) {
      lines.push({ sign: '+', text: right })
      j++
    }
  }
  return lines
}
