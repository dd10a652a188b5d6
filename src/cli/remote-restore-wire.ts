import { once } from 'node:events'
import { dirname } from 'node:path'

import { BackupError, errorCodeOf, messageOf } from '../base/errors.js'
import type { WritableExport } from '../image/export-image.js'
import type { FileOwner } from '../image/image-writer.js'
import { resolveOwner } from '../image/owner.js'
import { RemoteDirectories } from '../image/remote-directory.js'
import { RemoteImages } from '../image/remote-images.js'
import type { RemoteMachine } from '../image/remote-machine.js'
import type { FirmwarePlaces } from '../jobs/restore-domain.js'
import type { MeasuredDisk } from '../jobs/restore-job.js'
import type { RestorePlan } from '../jobs/restore-plan.js'
import type { DiskToOpen, OpenedDisk } from '../jobs/rollback-job.js'
import { parseQemuUser, type QemuUser } from '../libvirt/capabilities-xml.js'
import { RemoteServers } from '../libvirt/remote-servers.js'
import { feedThere, runThere } from '../libvirt/remote-shell.js'
import type { SshLink } from '../libvirt/ssh-link.js'
import type { NbdAddress } from '../native/nbd.js'
import { ExportWriter } from '../nbd/export-writer.js'
import { servingArguments } from '../nbd/qemu-nbd.js'
import { firmwarePlaces } from './places.js'
import { remoteRuntimeDir, remoteWish } from './remote-wire.js'
import type { RunContext } from './session.js'
import type { Machine } from './wire.js'

/** Makes what restores to another machine are made of: a part of wire.ts. */

const EXPORT = 'disk'
const NBD_CONNECTIONS = 4
/** Zeroing a large range of a slow disk takes its time. */
const NBD_REQUEST_TIMEOUT_MS = 300_000
/** Of a lost ssh connection the tunnels end first, and the process that has them a moment later. */
const LOSS_GRACE_MS = 2_000
/** What a lost connection looks like to those who use it. */
const LIKE_A_LOSS: ReadonlySet<string> = new Set(['E_NBD', 'E_NBD_PROTOCOL', 'E_TIMEOUT', 'E_UNREACHABLE'])

/** The machine of a hypervisor, as a place to restore to. Disposing ends all that it runs there. */
export interface RemotePlace extends AsyncDisposable {
  readonly host: string
  readonly uri: string
  readonly link: SshLink
  readonly machine: RemoteMachine
  readonly servers: RemoteServers
  readonly images: RemoteImages
  readonly directories: RemoteDirectories
  readonly firmware: FirmwarePlaces
  /** QEMU's user, where libvirt gives it one of its own and we may give things to it. */
  readonly qemuUser: QemuUser | undefined
  /** For sockets. Rejects with E_UNREACHABLE. */
  runtimeDir(): Promise<string>
  /** Lets QEMU connect to a socket that is ours. Rejects with E_CONFIG, E_UNREACHABLE. */
  admitQemu(socket: string): Promise<void>
  /** Throws E_USAGE for a path that means nothing over there. */
  requireAbsolute(path: string): void
  /** By the databases over there. Rejects with E_USAGE, E_NOT_FOUND, E_UNREACHABLE. */
  resolveOwner(text: string): Promise<FileOwner>
  /** Rejects with E_NO_SPACE where the images would not fit, as far as that can be told before. */
  requireRoom(plan: RestorePlan, measured: readonly MeasuredDisk[]): Promise<void>
  /**
   * What the work makes over there stays where it succeeds. Else it is removed,
   * over a new connection where need be, and the error says what could not be.
   */
  undoing<T>(work: () => Promise<T>): Promise<T>
}

/** undefined where libvirt is on this machine. Rejects with E_UNREACHABLE. */
export async function openRemotePlace(session: RunContext, machine: Machine): Promise<RemotePlace | undefined> {
  const { ssh: link } = machine.ways
  if (link === undefined) return undefined
  const { uri } = machine.access
  const wish = remoteWish(await session.config(), undefined)
  const runtimeDir = () => remoteRuntimeDir(uri, link, wish)
  const servers = new RemoteServers(link, runtimeDir)
  const { uid, home } = await userThere(link)
  const user = parseQemuUser(await machine.hypervisor.call(connection => connection.capabilities()))
  const left: { readonly files: readonly string[]; readonly error: unknown }[] = []
  const there = remoteMachine(session, link, servers)
  const images = new RemoteImages(there, (files, error) => left.push({ files, error }))
  const directories = new RemoteDirectories(there)
  return {
    host: link.host,
    uri,
    link,
    machine: there,
    servers,
    images,
    directories,
    runtimeDir,
    admitQemu: socket => admitQemu(there, socket, user),
    firmware: firmwarePlaces(uri, `${home}/.config`),
    qemuUser: uid === '0' ? user : undefined,
    requireAbsolute: path => directories.requireAbsolute(path),
    resolveOwner: text =>
      resolveOwner(text, { name: link.host, lookUp: (database, key) => directories.lookUp(database, key) }),
    requireRoom: (plan, measured) => requireRoom(directories, plan, measured),
    undoing: async work => {
      try {
        const result = await work()
        images.keep()
        directories.keep()
        return result
      } catch (error) {
        await images.undo()
        await directories.undo().catch(() => undefined)
        throw explained(error, link.host, left.splice(0))
      }
    },
    [Symbol.asyncDispose]: () => servers[Symbol.asyncDispose](),
  }
}

function remoteMachine(session: RunContext, link: SshLink, servers: RemoteServers): RemoteMachine {
  return {
    host: link.host,
    run: (script, args, signal) => runThere(link, script, args, signal),
    own: path => servers.own(path),
    feed: (script, args, bytes) => feedThere(link, script, args, bytes),
    serve: async ({ path, format }, signal) => {
      const image = { path, format, isBlockDevice: false, exportName: EXPORT, writable: true }
      const server = await servers.serve({ path, args: servingArguments(image) }, signal)
      try {
        const target = await openForWriting(session, { link, address: server.address }, signal)
        return { target, close: () => server.stop(), [Symbol.asyncDispose]: () => server[Symbol.asyncDispose]() }
      } catch (error) {
        await server[Symbol.asyncDispose]()
        throw error
      }
    },
  }
}

/** As the local openDisk(): an image over there as it is now, served by a qemu-nbd there with QEMU's lock. */
export async function openRemoteDisk(
  session: RunContext,
  { link, servers }: RemotePlace,
  { image, bitmap, writable }: DiskToOpen,
  signal: AbortSignal,
): Promise<OpenedDisk> {
  const { ExportReader } = await import('../nbd/export-reader.js')
  const { ExportImage } = await import('../image/export-image.js')
  const { openServedDisk } = await import('./served-disk.js')
  const args = servingArguments({ ...image, exportName: EXPORT, bitmap, writable })
  const how = { exportName: EXPORT, requestTimeoutMs: NBD_REQUEST_TIMEOUT_MS, connections: 1, dirtyBitmap: bitmap }
  const opened = await openServedDisk({ writable }, async () => {
    const server = await servers.serve({ path: image.path, args }, signal)
    const { address } = server
    return {
      openReader: () => ExportReader.open(address, how, signal),
      openWriter: async (size: number) =>
        new ExportImage(image.path, size, await openForWriting(session, { link, address }, signal)),
      stop: () => server.stop(),
      [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
    }
  })
  return { ...opened, extents: until => telling(session, link, opened.extents(until)) }
}

async function* telling<T>(session: RunContext, link: SshLink, items: AsyncIterable<T>): AsyncGenerator<T> {
  try {
    yield* items
  } catch (error) {
    throw await causeOfLoss(session, link, error)
  }
}

async function openForWriting(
  session: RunContext,
  { link, address }: { readonly link: SshLink; readonly address: NbdAddress },
  signal: AbortSignal,
): Promise<WritableExport> {
  // Where each connection is a session of its own, sshd allows few.
  const connections = address.command === undefined ? NBD_CONNECTIONS : 1
  const how = { exportName: EXPORT, connections, requestTimeoutMs: NBD_REQUEST_TIMEOUT_MS }
  const writer = await ExportWriter.open(address, how, signal)
  const tell = async (work: Promise<void>, until: AbortSignal) => {
    try {
      await work
    } catch (error) {
      throw until.aborted ? error : await causeOfLoss(session, link, error)
    }
  }
  return {
    size: writer.size,
    write: (pieces, buffer, until) => tell(writer.write(pieces, buffer, until), until),
    zero: (offset, length, options, until) => tell(writer.zero(offset, length, options, until), until),
    flush: until => tell(writer.flush(until), until),
    [Symbol.asyncDispose]: () => writer[Symbol.asyncDispose](),
  }
}

/** An NBD connection that broke is the first sign of an ssh connection that did: then that is what failed. */
async function causeOfLoss({ clock }: RunContext, link: SshLink, error: unknown): Promise<unknown> {
  if (!LIKE_A_LOSS.has(errorCodeOf(error))) return error
  const { lost } = link
  if (!lost.aborted) {
    const enough = new AbortController()
    const waits = [once(lost, 'abort', { signal: enough.signal }), clock.sleep(LOSS_GRACE_MS, enough.signal)]
    await Promise.race(waits)
    enough.abort()
    await Promise.allSettled(waits)
  }
  return lost.aborted ? lost.reason : error
}

async function userThere(link: SshLink): Promise<{ readonly uid: string; readonly home: string }> {
  const { stdout } = await link.run('id -u; printf %s "$HOME"')
  const [uid = '', home = ''] = stdout.toString().split('\n')
  return { uid, home }
}

/** Whoever is not root gives QEMU's user the right by an access list. */
const ADMIT = `
[ "$2" = "$(id -u)" ] && exit 0
if [ "$(id -u)" = 0 ]; then exec chown "$2:$3" -- "$1"; else exec setfacl -m "u:$2:rw" -- "$1"; fi`

async function admitQemu(machine: RemoteMachine, socket: string, user: QemuUser | undefined): Promise<void> {
  if (user === undefined) return
  const answer = await machine.run(ADMIT, [socket, String(user.uid), String(user.gid)])
  if (answer.code === 0) return
  throw new BackupError('E_CONFIG', `QEMU of ${machine.host} cannot be let in to ${socket}`, {
    why: answer.stderr.trim(),
    hints: ['connect as root, or install acl there: QEMU runs as another user'],
  })
}

/** Of a machine that is far away nobody sees that it gets full: asked before hours of copying. */
async function requireRoom(
  directories: RemoteDirectories,
  { disks }: RestorePlan,
  measured: readonly MeasuredDisk[],
): Promise<void> {
  const room = new Map<string, number>()
  for (const { disk, spec } of disks) {
    if (spec.kind !== 'qcow2' && spec.kind !== 'raw') continue
    const data = measured.find(({ target }) => target === disk.target)?.dataBytes ?? 0
    const bytes = spec.preallocation === 'falloc' || spec.preallocation === 'full' ? spec.size : data
    room.set(dirname(spec.path), (room.get(dirname(spec.path)) ?? 0) + bytes)
  }
  for (const [directory, bytes] of room) await directories.requireRoom(directory, bytes)
}

/** Adds what became of the files over there. */
function explained(
  error: unknown,
  host: string,
  left: readonly { readonly files: readonly string[]; readonly error: unknown }[],
): unknown {
  const isLost = errorCodeOf(error) === 'E_UNREACHABLE'
  if (left.length === 0 && !isLost) return error
  const known = error instanceof BackupError ? error : undefined
  const files = left.flatMap(one => one.files)
  const hint =
    files.length === 0
      ? `nothing of this restore is left on ${host}: run it again`
      : `unless ${host} has removed them by itself, these files may be left there (${messageOf(left[0]?.error)}):   rm ${files.join(' ')}`
  // Not that there is TLS for the disks: nothing could be written that way.
  const hints = [...(known?.hints.filter(text => !text.includes('--tls')) ?? []), hint]
  return new BackupError(errorCodeOf(error), messageOf(error), { why: known?.why, hints, cause: error })
}
