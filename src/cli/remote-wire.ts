import { lookup } from 'node:dns/promises'
import { access, constants } from 'node:fs/promises'
import { isIP } from 'node:net'
import { join } from 'node:path'

import { BackupError, errorCodeOf, messageOf } from '../base/errors.js'
import { type LoadedConfig } from '../config/load.js'
import type { HostFiles } from '../libvirt/host-files.js'
import type { PlacesPolicy } from '../libvirt/run-places.js'
import type { SshLink } from '../libvirt/ssh-link.js'
import type { RemoteFact } from '../model/finding.js'
import { isLocalUri, parseLibvirtUri } from '../model/libvirt-uri.js'
import { type RemoteWay, remoteWay, type RemoteWish } from '../model/remote-way.js'
import type { NbdAddress } from '../native/nbd.js'
import { defaultScratchDir, runtimeDir } from './places.js'

/** Makes the ways to a hypervisor's files and disks; see wire.ts. */

/** Where libvirt's packages make a directory that QEMU's user can pass; with ssh we make our own. */
const SCRATCH_WITHOUT_SSH = '/var/lib/libvirt/images'

/** The ways to one hypervisor besides libvirt's own connection. */
export interface HostWays extends AsyncDisposable {
  readonly files: HostFiles
  /** undefined where the URI is not ssh. */
  readonly ssh: SshLink | undefined
}

/** Connects to nothing: ssh is called when it is first needed. */
export async function openWays(uri: string): Promise<HostWays> {
  const { LOCAL_FILES, NO_FILES, sshFiles } = await import('../libvirt/host-files.js')
  const nothing = { ssh: undefined, [Symbol.asyncDispose]: () => Promise.resolve() }
  const parsed = parseLibvirtUri(uri)
  if (isLocalUri(uri) || parsed === undefined) return { files: LOCAL_FILES, ...nothing }
  if (parsed.transport !== 'ssh') return { files: NO_FILES, ...nothing }
  const { SshLink } = await import('../libvirt/ssh-link.js')
  const ssh = new SshLink(parsed, { runtimeDir: runtimeDir() })
  return { files: sshFiles(ssh), ssh, [Symbol.asyncDispose]: () => ssh[Symbol.asyncDispose]() }
}

/** What configuration and flags say, the flags first. */
export function remoteWish({ config }: Pick<LoadedConfig, 'config'>, flags: RemoteWish | undefined): RemoteWish {
  const { remote } = config
  return {
    nbd: flags?.nbd ?? remote?.nbd,
    insecure: flags?.insecure ?? (flags?.nbd === 'tls' ? false : remote?.insecure),
    bind: flags?.bind ?? remote?.bind,
    host: remote?.host,
    ports: remote?.ports === undefined ? undefined : String(remote.ports),
    certificates: remote?.certificates,
    runtimeDir: remote?.runtime_dir,
  }
}

/** undefined for a libvirt of this machine. Throws E_REFUSED, E_CONFIG. */
export function wayOf(uri: string, wish: RemoteWish): RemoteWay | undefined {
  const parsed = parseLibvirtUri(uri)
  return isLocalUri(uri) || parsed === undefined ? undefined : remoteWay(parsed, wish)
}

/** Where the places of runs lie on the hypervisor. Rejects with E_REFUSED, E_CONFIG, E_UNREACHABLE. */
export async function placesOn(
  uri: string,
  ways: HostWays,
  wish: RemoteWish & { readonly scratchDir: string | undefined },
): Promise<PlacesPolicy> {
  const { scratchDir } = wish
  const way = wayOf(uri, wish)
  if (way === undefined) return { runtimeDir: runtimeDir(), scratchDir: scratchDir ?? defaultScratchDir() }
  const own = await homeOf(uri, ways.ssh, wish.runtimeDir !== undefined && scratchDir !== undefined)
  const places = { runtimeDir: wish.runtimeDir ?? own.runtimeDir, scratchDir: scratchDir ?? own.scratchDir }
  if (way.kind === 'tunnel') return places
  const { host, firstPort, lastPort, tls } = way
  if (tls !== undefined) await requireCertificates(tls.certificates)
  const bind = way.bind ?? (await addressOf(host))
  return { ...places, isFlat: ways.ssh === undefined, tcp: { bind, host, firstPort, lastPort, tls } }
}

/** What a backup would meet there. Never rejects: what goes wrong is in `trouble`. */
export async function lookAtRemote(
  uri: string,
  ways: HostWays,
  wish: RemoteWish & { readonly scratchDir: string | undefined },
): Promise<RemoteFact> {
  const trouble: Error[] = []
  const attempt = async <T>(look: () => Promise<T>): Promise<T | undefined> => {
    try {
      return await look()
    } catch (error) {
      if (!(error instanceof Error)) throw error
      if (!trouble.some(({ message }) => message === error.message)) trouble.push(error)
      return undefined
    }
  }
  const way = await attempt(() => Promise.resolve().then(() => wayOf(uri, wish)))
  const { ssh: link } = ways
  const ssh = link === undefined ? undefined : await attempt(() => lookThroughSsh(link))
  const places = await attempt(() => placesOn(uri, ways, wish))
  const scratch = places === undefined ? undefined : { path: places.scratchDir, free: undefined }
  // A name below it, since it is the directory of a file that is asked about.
  const free =
    scratch === undefined ? undefined : await attempt(() => ways.files.freeSpace([join(scratch.path, 'any')]))
  const host = parseLibvirtUri(uri)?.host ?? 'localhost'
  return { host, way, ssh, scratch: scratch === undefined ? undefined : { ...scratch, free }, trouble }
}

const LOOK =
  'id -u; id -un; for tool in nc socat qemu-img qemu-storage-daemon setfacl; do command -v $tool >/dev/null && echo $tool; done; true'

async function lookThroughSsh(link: SshLink) {
  const { stdout } = await link.run(LOOK)
  const [uid, user = '', ...tools] = stdout.toString().trim().split('\n')
  return { user, isRoot: uid === '0', tools }
}

/** A reason and a way out for what keeps a connection over the network from being made. */
export function explainNetwork(address: NbdAddress, error: unknown): unknown {
  const { host, port, tls } = address
  if (errorCodeOf(error) !== 'E_NBD' || host === undefined) return error
  const place = `${host}:${port ?? 0}`
  if (tls === undefined) {
    return new BackupError('E_NBD', `no connection to the disks at ${place}`, {
      why: messageOf(error),
      hints: [`see that no firewall keeps this machine from that port`],
      cause: error,
    })
  }
  return new BackupError('E_NBD', `no TLS connection to the disks at ${place}`, {
    why: messageOf(error),
    hints: [
      `the server's certificate (backup_tls_x509_cert_dir in qemu.conf there) must name ${host}, and ca-cert.pem in ${tls.certificates ?? ''} must have signed it`,
      'and QEMU must trust what signed our client-cert.pem, unless backup_tls_x509_verify = 0',
    ],
    cause: error,
  })
}

/** libnbd's own complaints do not say which file, and come late. Rejects with E_CONFIG. */
async function requireCertificates(folder: string): Promise<void> {
  try {
    await access(join(folder, 'ca-cert.pem'), constants.R_OK)
  } catch (error) {
    throw new BackupError('E_CONFIG', `there are no certificates in ${folder}, so no server could be believed`, {
      why: messageOf(error),
      hints: [
        'put ca-cert.pem, client-cert.pem and client-key.pem there, or name the directory:   remote: { certificates: DIR }',
        'connect through ssh, which needs none:   -c qemu+ssh://root@HOST/system',
        'or say that the network is trusted:   --insecure',
      ],
      cause: error,
    })
  }
}

/** Where sockets of ours lie over there. Rejects with E_UNREACHABLE. */
export async function remoteRuntimeDir(uri: string, ssh: SshLink, wish: RemoteWish): Promise<string> {
  return wish.runtimeDir ?? (await homeOf(uri, ssh, false)).runtimeDir
}

async function homeOf(uri: string, ssh: SshLink | undefined, isNamed: boolean) {
  if (ssh === undefined) return { runtimeDir: '/', scratchDir: SCRATCH_WITHOUT_SSH }
  if (isNamed) return { runtimeDir: '/', scratchDir: '/' }
  const { stdout } = await ssh.run('id -u; printf %s "$HOME"')
  const [uid = '', home = ''] = stdout.toString().split('\n')
  if (uid === '0') return { runtimeDir: '/run/virtvault', scratchDir: '/var/lib/virtvault/scratch' }
  // QEMU of a session is the user's own; that of the system must pass through, which no home allows.
  const base = /\/session$/.test(parseLibvirtUri(uri)?.path ?? '')
    ? `${home}/.local/state/virtvault`
    : `/var/tmp/virtvault-${uid}`
  return { runtimeDir: `${base}/run`, scratchDir: `${base}/scratch` }
}

/** QEMU would look the name up there, and often find 127.0.1.1. */
async function addressOf(host: string): Promise<string> {
  if (isIP(host) !== 0) return host
  try {
    return (await lookup(host)).address
  } catch (error) {
    throw new BackupError('E_UNREACHABLE', `the name ${host} has no address`, {
      why: messageOf(error),
      hints: ['give the address that QEMU shall listen at:   --nbd-bind IP'],
      cause: error,
    })
  }
}
