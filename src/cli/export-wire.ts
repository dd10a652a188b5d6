import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'

import { type BackupError, errorCodeOf, messageOf } from '../base/errors.js'
import { type RunningServer, ServeJob } from '../jobs/serve-job.js'
import { ServeStoreJob } from '../jobs/serve-store-job.js'
import { shortId } from '../model/point-ref.js'
import type { RecoveryPoint } from '../model/recovery-point.js'
import { ExportServer, type ServerAddress } from '../nbd/export-server.js'
import { readServerCredentials } from '../nbd/server-tls.js'
import type { StorePort } from '../store/store-types.js'
import type { BackingFile } from './backing-flag.js'
import type { ServedAt } from './export-view.js'
import type { Session } from './session.js'
import { runtimeDir } from './places.js'
import { localTimeZone } from './points.js'

/** Makes what `export` needs; a part of wire.ts that only it loads. */

/** Exports of one point at once that get a socket without being asked. */
const DEFAULT_SOCKETS = 16

export interface ExportPlace {
  readonly cacheBytes: number
  /** undefined: a unix socket of our own. */
  readonly where: { readonly path: string } | { readonly host: string; readonly port: number } | undefined
  readonly tlsDirectory: string | undefined
}

export interface ExportWish extends ExportPlace {
  readonly point: RecoveryPoint
  readonly disks: readonly string[] | undefined
  /** Where images are that the point leaves out. */
  readonly backing: readonly BackingFile[]
}

export interface StoreExportWish extends ExportPlace {
  /** UUIDs; undefined: all. */
  readonly domains: ReadonlySet<string> | undefined
}

interface ServingJob extends AsyncDisposable {
  readonly server: RunningServer
  readonly failedReads: number
}

export interface StartedExport<Job extends ServingJob> extends AsyncDisposable {
  readonly job: Job
  readonly at: ServedAt
  /** Resolves on SIGINT and its like, which are how an export ends; with `once` also when its clients have gone. */
  untilEnd(once: boolean, signal: AbortSignal): Promise<void>
}

/** Serves a point when it resolves. Rejects as ServeJob.start() and ExportServer.listen(). */
export async function startExport(
  session: Session,
  store: StorePort,
  wish: ExportWish,
): Promise<StartedExport<ServeJob>> {
  const { servedBelow } = await import('./backing-wire.js')
  const { point, disks, backing } = wish
  return await startAt(session, { ...wish, name: shortId(point.id) }, async (listen, onDamage) => {
    const below = await servedBelow(session, point, { disks, files: backing })
    return await ServeJob.start({ store, listen, onDamage }, { ...wish, below })
  })
}

/** Serves all points of a store when it resolves. Rejects as ServeStoreJob.start() and ExportServer.listen(). */
export async function startStoreExport(
  session: Session,
  store: StorePort,
  wish: StoreExportWish,
): Promise<StartedExport<ServeStoreJob>> {
  return await startAt(session, { ...wish, name: 'all' }, (listen, onDamage) =>
    ServeStoreJob.start({ store, listen, onDamage }, { ...wish, timeZone: localTimeZone() }),
  )
}

type Listen = (
  exports: Parameters<typeof ExportServer.listen>[1]['exports'],
  onReadFailure: (error: unknown) => void,
) => Promise<ExportServer>

async function startAt<Job extends ServingJob>(
  session: Session,
  place: ExportPlace & { readonly name: string },
  startJob: (listen: Listen, onDamage: (error: BackupError) => void) => Promise<Job>,
): Promise<StartedExport<Job>> {
  const tls = place.tlsDirectory === undefined ? undefined : await readServerCredentials(place.tlsDirectory)
  const onConnectionFailure = (error: unknown) => session.progress.report(logOf(error))
  const start = (address: ServerAddress) =>
    startJob(
      (exports, onReadFailure) => ExportServer.listen(address, { exports, tls, onReadFailure, onConnectionFailure }),
      error => session.complain(`${error.message}  [${error.code}]`),
    )
  const { where } = place
  if (where !== undefined && 'host' in where) {
    const job = await start({ kind: 'tcp', ...where })
    const port = job.server.port ?? where.port
    return startedExport(job, { kind: 'tcp', host: where.host, port, tls: tls !== undefined })
  }
  if (where !== undefined) return startedExport(await start({ kind: 'unix', ...where }), { kind: 'unix', ...where })
  const directory = runtimeDir()
  await mkdir(directory, { recursive: true })
  for (let number = 1; ; number++) {
    const path = join(directory, `export-${place.name}${number === 1 ? '' : `-${number}`}.sock`)
    try {
      return startedExport(await start({ kind: 'unix', path }), { kind: 'unix', path })
    } catch (error) {
      // Taken: by another export of the same point, most likely.
      if (errorCodeOf(error) !== 'E_EXISTS' || number === DEFAULT_SOCKETS) throw error
    }
  }
}

function startedExport<Job extends ServingJob>(job: Job, at: ServedAt): StartedExport<Job> {
  return {
    job,
    at,
    untilEnd: async (once, signal) => {
      const interrupted = new Promise<void>(resolve => {
        if (signal.aborted) resolve()
        signal.addEventListener('abort', () => resolve(), { once: true })
      })
      const served = once ? job.server.untilServed(signal) : new Promise<void>(() => undefined)
      await Promise.race([interrupted, served.catch((error: unknown) => rethrowUnless(signal.aborted, error))])
    },
    [Symbol.asyncDispose]: () => job[Symbol.asyncDispose](),
  }
}

function rethrowUnless(isExpected: boolean, error: unknown): void {
  if (!isExpected) throw error
}

function logOf(error: unknown) {
  return { kind: 'log', level: 'debug', message: `a client was dropped: ${messageOf(error)}` } as const
}
