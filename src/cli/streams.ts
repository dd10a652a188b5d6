import { writeSync } from 'node:fs'

const STDOUT = 1

/**
 * Survives readers that go away (`| head`): what cannot be written is dropped,
 * the work goes on and the exit code stays that of the work. Anything else that
 * breaks an output stream is an error.
 */
export function surviveBrokenPipes(): void {
  for (const stream of [process.stdout, process.stderr]) {
    stream.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code !== 'EPIPE' && error.code !== 'EIO') throw error
    })
  }
}

/** Writes result text; the only ways to stdout and stderr outside of progress. */
export function writeOut(lines: readonly string[]): void {
  if (lines.length > 0) process.stdout.write(`${lines.join('\n')}\n`)
}

export function writeErr(lines: readonly string[]): void {
  if (lines.length > 0) process.stderr.write(`${lines.join('\n')}\n`)
}

/** Writes the one document of `--json`. Never coloured, whatever FORCE_COLOR says. */
export function writeDocument(document: unknown): void {
  process.stdout.write(documentText(document))
}

/** The text that writeDocument() writes. */
export function documentText(document: unknown): string {
  return `${JSON.stringify(document, undefined, 2)}\n`
}

/**
 * Writes to standard output without the stream that Node would make for it,
 * which takes 5 ms of 65 where it is a pipe. For a program that writes once and
 * ends; a reader that is slow or gone is dealt with as by the streams.
 */
export function writeWithoutStream(text: string): void {
  let left = Buffer.from(text)
  try {
    while (left.length > 0) left = left.subarray(writeSync(STDOUT, left))
  } catch {
    // EAGAIN, or what the stream's own listener tells apart.
    surviveBrokenPipes()
    process.stdout.write(left)
  }
}
