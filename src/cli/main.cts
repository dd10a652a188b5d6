#!/usr/bin/env node
// CommonJS on purpose: an ES module entry is read through libuv's thread pool,
// which then exists before its size can be set (measured on Node 20.20: 4
// threads whatever the variable says).

// Stores, images and sockets are for the user who makes them.
process.umask(0o077)
// Hashing and compression share the pool with file I/O.
process.env['UV_THREADPOOL_SIZE'] ??= '12'

void import('./program.js').then(program => program.main(process.argv.slice(2)))
