import { mkdir, rm } from 'node:fs/promises'
import { existsSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'

import { createOverlay, isOverlay, isOverlayOn } from '../image/overlay.js'
import { createRemoteOverlay, isRemoteOverlay, isRemoteOverlayOn } from '../image/remote-overlay.js'
import type { InstantPorts } from '../jobs/instant-restore.js'
import type { StorePort } from '../store/store-types.js'
import { runtimeDir } from './places.js'
import type { RemotePlace } from './remote-restore-wire.js'
import { type DomainPlace, localPlace, makeImages, makePassableDirectory, remotePlace } from './restore-wire.js'
import type { Session } from './session.js'
import { qemuUserOf, serveForQemu } from './trial-wire.js'
import type { Machine } from './wire.js'

/** Where an instant restore has its overlays, and how QEMU gets to the export: a part of wire.ts. */
export interface InstantPlace
  extends Pick<InstantPorts, 'serve' | 'createOverlay' | 'isOverlay' | 'isOverlayOn' | 'removeFile'> {
  /** The URI, where it is another machine's. */
  readonly connect: string | undefined
  readonly domain: DomainPlace
  /** Where QEMU finds the export. */
  socketFor(id: string): Promise<string>
  /** With its parents, for overlays. Rejects with E_USAGE, E_IO, E_UNREACHABLE. */
  makeFolder(path: string): Promise<void>
  exists(path: string): Promise<boolean>
  /** Aborted when QEMU's way to the export is lost. */
  readonly lost: AbortSignal | undefined
}

/** Of this machine. */
export async function localInstantPlace(session: Session, store: StorePort, machine: Machine): Promise<InstantPlace> {
  const user = await qemuUserOf(machine)
  return {
    connect: undefined,
    domain: localPlace(machine, await makeImages()),
    lost: undefined,
    socketFor: id => Promise.resolve(join(runtimeDir(), `instant-${id}.sock`)),
    makeFolder: makePassableDirectory,
    exists: path => Promise.resolve(existsSync(path)),
    serve: async where => {
      await mkdir(runtimeDir(), { recursive: true })
      return await serveForQemu({ store, user }, where, error => session.complain(error.message))
    },
    createOverlay: spec => createOverlay({ ...spec, owner: user }),
    isOverlay,
    isOverlayOn,
    removeFile: path => rm(path, { force: true }),
  }
}

/** Of a hypervisor's machine: the export is here, and ssh carries what QEMU reads of it. */
export function remoteInstantPlace(session: Session, store: StorePort, remote: RemotePlace): InstantPlace {
  const { directories, link, machine } = remote
  let lost: AbortSignal | undefined
  return {
    connect: remote.uri,
    domain: remotePlace(remote),
    get lost() {
      return lost
    },
    socketFor: async id => join(await remote.runtimeDir(), `instant-${id}.sock`),
    makeFolder: async path => {
      directories.requireAbsolute(path)
      await directories.make(path)
    },
    exists: path => directories.exists(path),
    serve: async where => {
      await mkdir(runtimeDir(), { recursive: true })
      const local = join(runtimeDir(), basename(where.socket))
      const offer = async () => {
        await directories.make(dirname(where.socket))
        const way = await link.offer(local, where.socket)
        lost = link.lost
        try {
          await remote.admitQemu(where.socket)
          return way
        } catch (error) {
          await way[Symbol.asyncDispose]()
          throw error
        }
      }
      const complain = (error: Error) => session.complain(error.message)
      return await serveForQemu({ store, user: undefined, offer }, { ...where, socket: local }, complain)
    },
    createOverlay: spec => createRemoteOverlay(machine, { ...spec, owner: remote.qemuUser }),
    isOverlay: path => isRemoteOverlay(machine, path),
    isOverlayOn: (path, socket) => isRemoteOverlayOn(machine, path, socket),
    removeFile: path => directories.removeFile(path),
  }
}
