import { randomUUID } from 'node:crypto'
import { chown, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import type { BackupError } from '../base/errors.js'
import { createOverlay } from '../image/overlay.js'
import { BootTest, type TpmFile, type TrialFolder } from '../jobs/boot-test.js'
import { type ReadTestResult, testRestore } from '../jobs/read-test.js'
import { tpmPlace } from '../jobs/restore-domain.js'
import { type RunningServer, ServeJob } from '../jobs/serve-job.js'
import { parseQemuUser, type QemuUser } from '../libvirt/capabilities-xml.js'
import { rewriteDomainXml } from '../libvirt/restore-xml.js'
import type { RecoveryPoint } from '../model/recovery-point.js'
import { ExportServer } from '../nbd/export-server.js'
import type { StorePort } from '../store/store-types.js'
import { firmwarePlaces, runtimeDir } from './places.js'
import { makePassableDirectory } from './restore-wire.js'
import type { RunContext } from './session.js'
import type { Machine } from './wire.js'

/** Makes what runs a recovery point for a while: a part of wire.ts. */

const CACHE_BYTES = 64 * 1024 * 1024

/** QEMU's user, where libvirt gives it one of its own and we may give things to it. */
export async function qemuUserOf(machine: Machine): Promise<QemuUser | undefined> {
  const user = parseQemuUser(await machine.hypervisor.call(connection => connection.capabilities()))
  return process.getuid?.() === 0 ? user : undefined
}

/** Serves a point on a socket that QEMU may connect to; `offer` opens the way to it for QEMU of another machine. */
export async function serveForQemu(
  parts: {
    readonly store: StorePort
    readonly user: QemuUser | undefined
    readonly offer?: () => Promise<AsyncDisposable>
  },
  where: { readonly point: RecoveryPoint; readonly disks?: readonly string[] | undefined; readonly socket: string },
  onDamage: (error: BackupError) => void,
): Promise<ServeJob> {
  const { store, user, offer } = parts
  const listen = async (
    exports: Parameters<typeof ExportServer.listen>[1]['exports'],
    onReadFailure: (error: unknown) => void,
  ) => {
    const server = await ExportServer.listen({ kind: 'unix', path: where.socket }, { exports, onReadFailure })
    if (user !== undefined) await chown(where.socket, user.uid, user.gid)
    return offer === undefined ? server : await offered(server, offer)
  }
  const request = { point: where.point, disks: where.disks, cacheBytes: CACHE_BYTES }
  return await ServeJob.start({ store, listen, onDamage }, request)
}

async function offered(server: ExportServer, offer: () => Promise<AsyncDisposable>): Promise<RunningServer> {
  try {
    const way = await offer()
    return {
      port: undefined,
      untilServed: signal => server.untilServed(signal),
      [Symbol.asyncDispose]: async () => {
        await way[Symbol.asyncDispose]()
        await server[Symbol.asyncDispose]()
      },
    }
  } catch (error) {
    await server[Symbol.asyncDispose]()
    throw error
  }
}

export async function makeBootTest(session: RunContext, store: StorePort, machine: Machine): Promise<BootTest> {
  const user = await qemuUserOf(machine)
  const give = async (path: string) => {
    if (user !== undefined) await chown(path, user.uid, user.gid)
  }
  return new BootTest({
    store,
    host: machine.hypervisor.connection,
    serve: (point, socket) => serveForQemu({ store, user }, { point, socket }, error => session.note(error.message)),
    createOverlay: spec => createOverlay({ ...spec, owner: user }),
    rewrite: rewriteDomainXml,
    makeFolder: () => makeTrialFolder(give),
    placeTpm: (uuid, files) => placeTpm(firmwarePlaces(machine.access.uri).swtpm, uuid, files),
    readText: path => readFile(path, 'latin1').catch(() => undefined),
    writeFile: async (path, bytes) => {
      await writeFile(path, bytes, { mode: 0o600 })
      await give(path)
    },
    newUuid: randomUUID,
    clock: session.clock,
    progress: session.progress,
  })
}

/** libvirt gives them to swtpm's user, and removes them with the domain; a start that fails leaves them. */
async function placeTpm(swtpmDir: string, uuid: string, files: readonly TpmFile[]): Promise<AsyncDisposable> {
  const remove = () => rm(join(swtpmDir, uuid), { recursive: true, force: true })
  try {
    for (const { name, bytes } of files) {
      const place = tpmPlace(swtpmDir, uuid, name)
      if (place === undefined) continue
      await makePassableDirectory(place.directory)
      await writeFile(place.path, bytes, { mode: 0o600 })
    }
  } catch (error) {
    await remove()
    throw error
  }
  return { [Symbol.asyncDispose]: remove }
}

/** Short, for the socket in it. */
async function makeTrialFolder(give: (path: string) => Promise<void>): Promise<TrialFolder> {
  const parent = runtimeDir()
  await mkdir(parent, { recursive: true })
  const path = await mkdtemp(join(parent, 'boot-'))
  await give(path)
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) }
}

export async function runReadTest(
  session: RunContext,
  store: StorePort,
  point: RecoveryPoint,
): Promise<ReadTestResult> {
  return await testRestore({ store, progress: session.progress, clock: session.clock }, point, session.signal)
}
