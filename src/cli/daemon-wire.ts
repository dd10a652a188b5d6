import { mkdir } from 'node:fs/promises'
import { availableParallelism, hostname } from 'node:os'
import { dirname, join } from 'node:path'

import { type DurableFs, localFs } from '../base/durable-fs.js'
import { BackupError, errorCodeOf, messageOf } from '../base/errors.js'
import { systemRandom } from '../base/random.js'
import type { LoadedConfig } from '../config/load.js'
import type { ResolvedJob } from '../config/resolve.js'
import { resolveSecret, secretSourceOf } from '../config/secrets.js'
import type { ApiPlace } from '../daemon/api-server.js'
import type { Daemon } from '../daemon/daemon.js'
import type { Machine as FollowedMachine, MachineEvent } from '../daemon/follow-domains.js'
import { History } from '../daemon/history.js'
import type { RunEntry } from '../daemon/history-entry.js'
import type { DomainOutcome } from '../jobs/pull-domains.js'
import type { DomainRef } from '../model/recovery-point.js'
import {
  decodeJobMetadata,
  encodeJobMetadata,
  findMetadata,
  JOB_METADATA_KEY,
  JOB_METADATA_URI,
} from '../libvirt/job-metadata-xml.js'
import { decodeVirtDupMetadata, VIRT_DUP_METADATA_URI } from '../libvirt/virt-dup-xml.js'
import type { Hypervisor } from '../libvirt/hypervisor.js'
import type { DomainJob } from '../model/domain-job.js'
import type { VirtEvent } from '../native/virt.js'
import { native } from '../native/binding.js'
import { DaemonJobs, figuresOf, tooLittleLog } from './daemon-jobs.js'
import { exitOfError } from './exit-codes.js'
import { formatLogTime } from './output.js'
import { readPackageJson } from './package-json.js'
import { runtimeDir, stateDir } from './places.js'
import { localTimeZone } from './points.js'
import { printable } from './printable.js'
import { secretEnvironment } from './secret-env.js'
import type { Session } from './session.js'
import { writeErr } from './streams.js'
import { connectMachine, type Machine } from './wire.js'

/** Makes the real daemon and what commands share with it; see wire.ts. */

/** VIR_DOMAIN_EVENT_STOPPED and its detail _MIGRATED. */
const STOPPED = 5
const MIGRATED = 3

export function localFileSystem(): DurableFs {
  return localFs(native())
}

/** Where the history and the daemon's memory are. */
export function stateFolder(loaded: LoadedConfig): string {
  return loaded.config.state_dir ?? stateDir()
}

/** The socket that the daemon listens at. */
export function apiSocket(loaded: Pick<LoadedConfig, 'config'>): string {
  return loaded.config.ui?.socket ?? join(runtimeDir(), 'api.sock')
}

/** The history of this machine. Rejects as DurableFs. */
export async function openHistory(loaded: LoadedConfig): Promise<History> {
  const folder = stateFolder(loaded)
  await mkdir(folder, { recursive: true, mode: 0o700 })
  return await History.open({
    directory: join(folder, 'history'),
    fs: localFileSystem(),
    now: () => Date.now(),
    random: systemRandom,
  })
}

/** The jobs in the metadata of a domain. Rejects with E_CONFIG. */
export async function readJobs(hypervisor: Hypervisor, uuid: string): Promise<readonly DomainJob[]> {
  const xml = await hypervisor.call(connection => connection.getMetadata(uuid, JOB_METADATA_URI))
  return xml === undefined ? [] : decodeJobMetadata(xml)
}

/** The jobs in the metadata of each domain. One that cannot be read is told, and counts as none. */
export async function metadataOf(
  session: Session,
  { hypervisor }: Machine,
  domains: readonly DomainRef[],
): Promise<ReadonlyMap<string, readonly DomainJob[]>> {
  const found = new Map<string, readonly DomainJob[]>()
  for (const { uuid, name } of domains) {
    try {
      found.set(uuid, await readJobs(hypervisor, uuid))
    } catch (error) {
      session.complain(`${name}: ${messageOf(error)}`)
    }
  }
  return found
}

/** Puts the pulls of a command into the history. What cannot be noted is told: the points are made all the same. */
export async function recordPulls(
  session: Session,
  run: {
    readonly outcomes: readonly DomainOutcome[]
    readonly jobs: readonly ResolvedJob[]
    readonly started: number
  },
): Promise<void> {
  try {
    await using history = await openHistory(await session.config())
    const jobs = new Map(run.jobs.map(job => [job.domain.uuid, job]))
    for (const outcome of run.outcomes) {
      const { id: job, group } = jobs.get(outcome.domain.uuid) ?? { id: 'default', group: undefined }
      await history.append(pullEntry(outcome, { started: run.started, job, group, now: session.clock.now() }))
    }
  } catch (error) {
    session.note(`the history was not written: ${messageOf(error)}`)
  }
}

function pullEntry(
  outcome: DomainOutcome,
  run: {
    readonly started: number
    readonly job: string
    readonly group: string | undefined
    readonly now: number
  },
): RunEntry {
  const { domain, status, target } = outcome
  const { job, group, started } = run
  const task = `pull/${domain.uuid}/${job}/${target}`
  const id = Buffer.from(systemRandom(8)).toString('hex')
  const begun = {
    id,
    task,
    verb: 'pull',
    target,
    domain,
    group,
    job,
    trigger: 'manual',
    attempt: 1,
    due: undefined,
  } as const
  const times = {
    started,
    ended: Math.min(run.now, started + Math.round(outcome.durationMs)),
    retryAt: undefined,
    log: [],
  }
  if (outcome.status === 'failed') {
    const error = { code: errorCodeOf(outcome.error), message: outcome.error.message }
    return { kind: 'run', ...begun, ...times, status, error, warnings: [], point: undefined, figures: {} }
  }
  if (outcome.status === 'skipped') {
    const figures = { changed_bytes: outcome.changedBytes }
    const log = [tooLittleLog(outcome.changedBytes)]
    return {
      kind: 'run',
      ...begun,
      ...times,
      log,
      status,
      error: undefined,
      warnings: outcome.warnings,
      point: undefined,
      figures,
    }
  }
  const { point, warnings } = outcome
  return {
    kind: 'run',
    ...begun,
    ...times,
    status,
    error: undefined,
    warnings,
    point: point.id,
    figures: figuresOf(point),
  }
}

/** Replaces them; none removes the element. */
export async function writeJobs(hypervisor: Hypervisor, uuid: string, jobs: readonly DomainJob[]): Promise<void> {
  const xml = jobs.length === 0 ? undefined : encodeJobMetadata(jobs)
  await hypervisor.call(connection => connection.setMetadata(uuid, JOB_METADATA_URI, JOB_METADATA_KEY, xml))
}

/** The jobs that virt-dup left in a domain; undefined where there are none. Rejects with E_CONFIG. */
export async function readVirtDupJobs(hypervisor: Hypervisor, uuid: string) {
  const xml = await hypervisor.call(connection => connection.getMetadata(uuid, VIRT_DUP_METADATA_URI))
  if (xml !== undefined) return decodeVirtDupMetadata(xml)
  const whole = await hypervisor.call(connection => connection.domainXml(uuid, { inactive: true }))
  const found = findMetadata(whole, VIRT_DUP_METADATA_URI)
  return found === undefined ? undefined : decodeVirtDupMetadata(found)
}

/** Runs the daemon until the session is aborted. Rejects with E_CONFIG, E_LOCKED where one runs already. */
export async function runDaemon(session: Session, options: { readonly drainMs: number | undefined }): Promise<void> {
  // Commands that only look at the history or at settings load nothing of the daemon.
  const { Daemon } = await import('../daemon/daemon.js')
  const { MemoryFile } = await import('../daemon/memory-file.js')
  const { runInGuest } = await import('../libvirt/guest-exec.js')
  const loaded = await session.config()
  // Runs tell the history and the journal; a display would say only that this one goes on.
  await session.endProgress()
  const fs = localFileSystem()
  await using history = await openHistory(loaded)
  await using _lock = await lockState(fs, stateFolder(loaded))
  let machine: Machine | undefined
  const jobs = new DaemonJobs(
    session,
    () => {
      if (machine !== undefined) return machine
      throw new BackupError('E_LIBVIRT_CONNECT', 'the daemon is not connected to libvirt')
    },
    () => daemon.domains,
  )
  const notifySocket = process.env['NOTIFY_SOCKET']
  const daemon: Daemon = new Daemon({
    clock: session.clock,
    fs,
    random: systemRandom,
    env: secretEnvironment(),
    timeZone: localTimeZone(),
    host: hostname(),
    cores: availableParallelism(),
    version: readPackageJson().version,
    configRequest: session.configRequest,
    history,
    memory: new MemoryFile(fs, stateFolder(loaded)),
    connect: async (now, signal) => {
      const connected = await connectMachine({
        settings: session.settings,
        clock: session.clock,
        signal,
        progress: session.progress,
        config: () => Promise.resolve(now),
        warn: warning => session.warn(warning),
        note: text => session.note(text),
        confirm: question => session.confirm(question),
      })
      machine = connected
      return followed(connected, () => (machine = undefined))
    },
    runJob: (work, signal) => jobs.run(work, signal),
    runInGuest: (uuid, command, signal) => {
      if (machine === undefined) throw new BackupError('E_LIBVIRT_CONNECT', 'the daemon is not connected to libvirt')
      return runInGuest(machine.hypervisor, uuid, command, signal)
    },
    exitOf: exitOfError,
    surveyStores: now => jobs.survey(now, session.signal),
    tellService: message => {
      if (notifySocket !== undefined && notifySocket !== '') native().sdNotify(notifySocket, message)
    },
    log: logLine,
    drainMs: options.drainMs,
  })
  session.onHangup(() => {
    daemon.reload().catch((error: unknown) => logLine('error', messageOf(error)))
  })
  await using _api = await serve(session, loaded, daemon)
  await daemon.run(session.signal)
}

async function lockState(fs: DurableFs, folder: string) {
  const lock = await fs.lock(join(folder, 'daemon.lock'), 'exclusive')
  if (lock !== undefined) return lock
  throw new BackupError('E_LOCKED', `another daemon runs with the state in ${folder}`, {
    hints: ['see it with: virtvault daemon status'],
  })
}

/** The socket always, loopback where the configuration says so. */
async function serve(session: Session, loaded: LoadedConfig, daemon: Daemon): Promise<AsyncDisposable> {
  const { ApiServer } = await import('../daemon/api-server.js')
  const { ui, metrics } = loaded.config
  const socket = apiSocket(loaded)
  await mkdir(dirname(socket), { recursive: true, mode: 0o750 })
  const places: ApiPlace[] = [{ kind: 'socket', path: socket }]
  if (metrics?.listen !== undefined) places.push({ kind: 'loopback', ...hostAndPort(metrics.listen), token: undefined })
  if (ui?.listen !== undefined) {
    const source = secretSourceOf(ui, 'token')
    const token = await resolveSecret({ name: 'token of the API', source, env: secretEnvironment() }, session.signal)
    if (token === undefined)
      throw new BackupError('E_CONFIG', 'ui.listen needs a token', { hints: ['give it ui.token_file'] })
    places.push({ kind: 'loopback', ...hostAndPort(ui.listen), token: token.secret })
  }
  const stack = new AsyncDisposableStackLite()
  try {
    for (const place of places) stack.add(await ApiServer.open(place, apiOf(daemon)))
  } catch (error) {
    await stack[Symbol.asyncDispose]()
    throw error
  }
  return stack
}

function apiOf(daemon: Daemon) {
  return {
    status: () => daemon.status(),
    history: (query: Parameters<Daemon['history']>[0]) => daemon.history(query),
    metrics: () => daemon.metrics(),
    runNow: (ids: readonly string[]) => daemon.runNow(ids),
    reload: () => daemon.reload(),
  }
}

/** Node 20 has no AsyncDisposableStack. */
class AsyncDisposableStackLite implements AsyncDisposable {
  readonly #parts: AsyncDisposable[] = []

  add(part: AsyncDisposable): void {
    this.#parts.push(part)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const part of this.#parts.reverse()) await part[Symbol.asyncDispose]()
  }
}

/** A libvirt as the daemon follows it. */
function followed({ hypervisor }: Machine, onClosed: () => void): FollowedMachine {
  return {
    uri: hypervisor.uri,
    domains: async () =>
      (await hypervisor.listDomains()).map(({ uuid, name, id }) => ({ uuid, name, isRunning: id >= 0 })),
    jobs: uuid => readJobs(hypervisor, uuid),
    events: signal => eventsOf(hypervisor, signal),
    reconnect: () => hypervisor.reconnect(),
    [Symbol.asyncDispose]: async () => {
      onClosed()
      await hypervisor[Symbol.asyncDispose]()
    },
  }
}

async function* eventsOf(hypervisor: Hypervisor, signal: AbortSignal): AsyncGenerator<MachineEvent> {
  for await (const event of hypervisor.events(signal)) {
    const seen = machineEvent(event)
    if (seen !== undefined) yield seen
  }
}

function machineEvent(event: VirtEvent): MachineEvent | undefined {
  switch (event.kind) {
    case 'closed':
      return { kind: 'lost' }
    case 'lifecycle':
      return { kind: 'domain', uuid: event.uuid, hasMigrated: event.event === STOPPED && event.detail === MIGRATED }
    case 'metadata':
      return event.uri === JOB_METADATA_URI ? { kind: 'domain', uuid: event.uuid } : undefined
    case 'job-completed':
    case 'io-error':
    case 'agent':
    case 'block-job':
    case 'block-threshold':
      return undefined
  }
}

const SYSLOG_LEVELS = { error: 3, warning: 4, info: 6 } as const

/** To the journal with its level, to a terminal with its time. */
function logLine(level: 'info' | 'warning' | 'error', message: string): void {
  const text = printable(message)
  const isJournal = process.env['JOURNAL_STREAM'] !== undefined
  writeErr([isJournal ? `<${SYSLOG_LEVELS[level]}>${text}` : `${formatLogTime(Date.now())} ${level} ${text}`])
}

function hostAndPort(text: string): { readonly host: string; readonly port: number } {
  const colon = text.lastIndexOf(':')
  return { host: text.slice(0, colon).replace(/^\[|\]$/g, ''), port: Number(text.slice(colon + 1)) }
}
