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
  process.stdout.write(`${JSON.stringify(document, undefined, 2)}\n`)
}
