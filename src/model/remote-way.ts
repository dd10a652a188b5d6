import { BackupError } from '../base/errors.js'
import type { LibvirtUri } from './libvirt-uri.js'

/** What configuration and flags say of a hypervisor on another machine. */
export interface RemoteWish {
  /** How its disks are read; undefined: through ssh where the URI is ssh, else over TLS. */
  readonly nbd?: 'ssh' | 'tls' | 'tcp' | undefined
  /** Somebody has said that clear text will do. */
  readonly insecure?: boolean | undefined
  /** Its address that QEMU listens at; undefined: the one that `host` has for us. */
  readonly bind?: string | undefined
  /** As its certificate has it; undefined: the URI's. */
  readonly host?: string | undefined
  /** `10809-10872`, or one port. */
  readonly ports?: string | undefined
  /** Directory of this machine with ca-cert.pem, client-cert.pem and client-key.pem; undefined: /etc/virtvault/pki. */
  readonly certificates?: string | undefined
  /** Directory of that machine for sockets. */
  readonly runtimeDir?: string | undefined
}

/** How the disks of a domain on another machine are read. */
export type RemoteWay =
  | { readonly kind: 'tunnel' }
  | {
      readonly kind: 'tcp'
      readonly host: string
      readonly bind: string | undefined
      readonly firstPort: number
      readonly lastPort: number
      readonly tls: { readonly certificates: string; readonly verifyPeer: true } | undefined
    }

/** From the port that IANA gave to NBD; enough for 64 pulls at once. */
const DEFAULT_PORTS = '10809-10872'
const DEFAULT_CERTIFICATES = '/etc/virtvault/pki'

/**
 * Decides. Clear text is never fallen back to: E_REFUSED where it is asked for
 * without saying so twice. E_CONFIG for what contradicts itself.
 */
export function remoteWay(uri: LibvirtUri, wish: RemoteWish): RemoteWay {
  const nbd = wish.nbd ?? (wish.insecure === true ? 'tcp' : uri.transport === 'ssh' ? 'ssh' : 'tls')
  const host = wish.host ?? uri.host ?? 'localhost'
  if (nbd === 'ssh') {
    if (uri.transport === 'ssh') return { kind: 'tunnel' }
    throw new BackupError('E_CONFIG', `disks cannot be read through ssh: the URI is ${uri.driver}+${uri.transport}`, {
      hints: [`connect through ssh too:   qemu+ssh://root@${host}/system`, 'or leave `remote: { nbd: ssh }` out'],
    })
  }
  if (nbd === 'tcp' && wish.insecure !== true) {
    throw new BackupError('E_REFUSED', `the disks would come from ${host} in clear text, to whoever asks for them`, {
      why: 'NBD without TLS has neither encryption nor passwords',
      hints: ['use TLS: leave `remote: { nbd: tcp }` out', 'or say that the network is trusted:   --insecure'],
    })
  }
  const certificates = wish.certificates ?? DEFAULT_CERTIFICATES
  const tls = nbd === 'tls' ? { certificates, verifyPeer: true as const } : undefined
  return { kind: 'tcp', host, bind: wish.bind, ...portRange(wish.ports ?? DEFAULT_PORTS), tls }
}

/** `10809` or `10809-10872`. Throws E_CONFIG. */
export function portRange(text: string): { readonly firstPort: number; readonly lastPort: number } {
  const match = /^(\d{1,5})(?:-(\d{1,5}))?$/.exec(text.trim())
  const firstPort = Number(match?.[1])
  const lastPort = Number(match?.[2] ?? match?.[1])
  if (match !== null && firstPort >= 1 && firstPort <= lastPort && lastPort <= 65_535) return { firstPort, lastPort }
  throw new BackupError('E_CONFIG', `"${text}" is no range of ports`, { hints: ['write it as 10809-10872'] })
}
