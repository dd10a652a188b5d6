/**
 * The daemon with 500 defined domains of a private libvirtd, all of them named
 * in the configuration: start-up, reload, idling and memory.
 *
 *     node dist/test/bench/daemon-bench.js [DOMAINS] [IDLE_SECONDS]
 */
import { spawn } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { request } from 'node:http'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

import { cliEnvironment } from '../demo/virtvault-cli.js'
import { Lab } from '../lab/lab.js'

const MAIN = fileURLToPath(new URL('../../src/cli/main.cjs', import.meta.url))
const [domains = 500, idleSeconds = 60] = process.argv.slice(2).map(Number)

const lab = await Lab.start()
try {
  const names = Array.from({ length: domains }, (_, at) => `vm${String(at).padStart(4, '0')}`)
  const files = names.map(name => {
    const file = lab.path(`${name}.xml`)
    const os = '<os><type arch="x86_64">hvm</type></os>'
    writeFileSync(file, `<domain type="qemu"><name>${name}</name><memory unit="MiB">32</memory>${os}</domain>`)
    return file
  })
  const from = performance.now()
  await lab.virshScript(files.map(file => `define ${file}`))
  report('defining them', `${Math.round(performance.now() - from)} ms`)
  const config = lab.path('config.yml')
  const hosts = names.map((name, at) => `      - { host: ${name}, priority: ${at % 5} }`).join('\n')
  writeFileSync(
    config,
    `uri: ${lab.uri}\ntargets: { nas: { path: ${lab.path('nas')} } }\ngroups:\n  all:\n    schedule: '0 2 * * *'\n    jitter: 2h\n    daily: 7\n    target: nas\n    hosts:\n${hosts}\n`,
    { mode: 0o600 },
  )
  const env: NodeJS.ProcessEnv = { ...process.env, ...cliEnvironment(lab), VIRTVAULT_CONFIG: config }
  const socketPath = join(env['VIRTVAULT_RUNTIME_DIR'] ?? '', 'api.sock')

  const ask = (method: string, path: string) =>
    new Promise<{ jobs?: unknown[] }>((resolve, reject) => {
      const headers = { 'content-type': 'application/json' }
      const asked = request({ socketPath, method, path, headers }, response => {
        let text = ''
        response.on('data', (part: Buffer) => (text += part.toString()))
        response.on('end', () => resolve(JSON.parse(text) as { jobs?: unknown[] }))
      })
      asked.on('error', reject)
      asked.end(method === 'POST' ? '{}' : undefined)
    })
  const started = performance.now()
  const daemon = spawn(MAIN, ['daemon', 'run'], { env, stdio: 'ignore' })
  try {
    for (;;) {
      const status = await ask('GET', '/v1/status').catch(() => undefined)
      if (status?.jobs?.length === domains) break
      await delay(20)
    }
    report('from start to all jobs', `${Math.round(performance.now() - started)} ms`)
    for (let round = 0; round < 5; round++) {
      const at = performance.now()
      await ask('POST', '/v1/reload')
      report('reload', `${Math.round(performance.now() - at)} ms`)
    }
    const at = performance.now()
    await ask('GET', '/v1/status')
    report('status', `${Math.round(performance.now() - at)} ms`)
    for (let round = 0; round < 4; round++) {
      const before = cpuOf(daemon.pid)
      await delay((idleSeconds * 1000) / 4)
      const used = cpuOf(daemon.pid) - before
      report(`idle ${idleSeconds / 4} s`, `${used} ms CPU, ${rssOf(daemon.pid)} MiB`)
    }
    for (let round = 0; round < 100; round++) await ask('POST', '/v1/reload')
    report('after 100 reloads', `${rssOf(daemon.pid)} MiB`)
    for (let round = 0; round < 100; round++) await ask('POST', '/v1/reload')
    report('after 200 reloads', `${rssOf(daemon.pid)} MiB`)
  } finally {
    daemon.kill('SIGTERM')
  }
} finally {
  await lab[Symbol.asyncDispose]()
}

function report(what: string, figure: string): void {
  process.stdout.write(`${what.padEnd(24)} ${figure}\n`)
}

/** Milliseconds of user and system time. */
function cpuOf(pid: number | undefined): number {
  const fields =
    readFileSync(`/proc/${pid ?? 0}/stat`, 'utf8')
      .split(') ')[1]
      ?.split(' ') ?? []
  return (Number(fields[11]) + Number(fields[12])) * 10
}

function rssOf(pid: number | undefined): number {
  const [, kib] = /VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid ?? 0}/status`, 'utf8')) ?? []
  return Math.round(Number(kib) / 1024)
}
