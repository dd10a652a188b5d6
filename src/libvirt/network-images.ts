import type { DomainDisk, ImageSource, NetworkServer } from '../model/domain.js'
import type { HostFiles } from './host-files.js'
import type { Hypervisor } from './hypervisor.js'
import { nbdTlsConf } from './qemu-conf.js'

const QEMU_CONF = '/etc/libvirt/qemu.conf'
const NBD_PORT = '10809'
const ISCSI_PORT = '3260'

/** A disk on a server, as qemu-storage-daemon opens it on the machine of the hypervisor. */
export interface NetworkImage {
  /** Of the driver that speaks the protocol. */
  readonly node: Readonly<Record<string, unknown>>
  /** Directory of the certificates that it shows and believes; undefined in clear text. */
  readonly certificates: string | undefined
}

export type NetworkAccess =
  | { readonly image: NetworkImage; readonly obstacle: undefined }
  | { readonly image: undefined; readonly obstacle: string }

type NetworkSource = Extract<ImageSource, { kind: 'network' }>

/**
 * How a network disk is read while its domain is off, or why it cannot be. A
 * server that the domain speaks TLS to is never spoken to in the open.
 *
 * Raw ones only: nothing locks a disk on a server, and a bitmap in an image
 * there could be written by us and a starting domain at once.
 */
export async function networkAccess(
  { files, uri }: Pick<Hypervisor, 'files' | 'uri'>,
  source: NetworkSource,
  disk: Pick<DomainDisk, 'encryption' | 'format'>,
): Promise<NetworkAccess> {
  const { protocol, server } = source
  if (protocol !== 'nbd' && protocol !== 'iscsi') return closed(`a network disk (${protocol}) is`)
  const word = protocol === 'nbd' ? 'an NBD disk' : 'an iSCSI disk'
  if (server === undefined) return closed(`${word} on several servers, or with a password, is`)
  if (disk.encryption !== undefined || (disk.format ?? 'raw') !== 'raw') return closed(`${word} that is not raw is`)
  if (protocol === 'iscsi') return iscsiAccess(source, server)
  const certificates = await nbdCertificates({ files, uri }, source)
  if (certificates.obstacle !== undefined) return closed(`${word} behind TLS, ${certificates.obstacle}, is`)
  const hostname = source.tls?.hostname === undefined ? {} : { 'tls-hostname': source.tls.hostname }
  const node = { driver: 'nbd', server: nbdPlace(server), export: source.name, ...hostname }
  return { image: { node, certificates: certificates.directory }, obstacle: undefined }
}

function closed(what: string): NetworkAccess {
  return { image: undefined, obstacle: `${what} read only while its domain runs` }
}

function nbdPlace(server: NetworkServer): Readonly<Record<string, unknown>> {
  if (server.kind === 'unix') return { type: 'unix', path: server.path }
  return { type: 'inet', host: server.host, port: server.port ?? NBD_PORT }
}

/** libvirt's name is `IQN/LUN`. */
function iscsiAccess({ name, initiator }: NetworkSource, server: NetworkServer): NetworkAccess {
  const [, target, lun = '0'] = /^(.*?)(?:\/(\d+))?$/.exec(name) ?? []
  if (server.kind !== 'tcp' || target === undefined) return closed('an iSCSI disk that is not on TCP is')
  const host = server.host.includes(':') ? `[${server.host}]` : server.host
  const node = {
    driver: 'iscsi',
    transport: 'tcp',
    portal: `${host}:${server.port ?? ISCSI_PORT}`,
    target,
    lun: Number(lun),
    ...(initiator === undefined ? {} : { 'initiator-name': initiator }),
  }
  return { image: { node, certificates: undefined }, obstacle: undefined }
}

type NbdCertificates =
  | { readonly directory: string | undefined; readonly obstacle: undefined }
  | { readonly obstacle: string }

/** As libvirt chooses them: the domain says whether, or else qemu.conf, which says where. */
async function nbdCertificates(
  { files, uri }: { readonly files: HostFiles; readonly uri: string },
  { tls }: NetworkSource,
): Promise<NbdCertificates> {
  if (tls?.isOn === false) return { directory: undefined, obstacle: undefined }
  // That of a session is in a home of the other machine.
  const text = /\/session\b/.test(uri) ? undefined : await files.readText(QEMU_CONF)
  const conf = nbdTlsConf(text ?? '')
  if (tls === undefined && !conf.isDefault) return { directory: undefined, obstacle: undefined }
  if (text === undefined) return { obstacle: `whose certificates ${QEMU_CONF} names, which we cannot read` }
  if (conf.hasSecret) return { obstacle: 'whose key libvirt keeps a passphrase for' }
  const [directory] = await files.taken(conf.certificates)
  return directory === undefined
    ? { obstacle: `without certificates in ${conf.certificates.join(' or ')}` }
    : { directory, obstacle: undefined }
}
