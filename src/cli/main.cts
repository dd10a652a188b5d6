#!/usr/bin/env node
// CommonJS on purpose: an ES module entry is read through libuv's thread pool,
// which then exists before its size can be set (measured on Node 20.20: 4
// threads whatever the variable says).
const bundled: import('./bundled.cjs').Bundled = require('./bundled.cjs')

// Stores, images and sockets are for the user who makes them.
process.umask(0o077)
// Hashing and compression share the pool with file I/O.
process.env['UV_THREADPOOL_SIZE'] ??= '12'

async function start(argv: readonly string[]): Promise<void> {
  const { answerAtOnce } = await bundled.loadProgram('front')
  if (answerAtOnce(argv)) return
  const program = await bundled.loadProgram('program')
  await program.main(argv)
}

void start(process.argv.slice(2))
