/** How a client gets to the daemon; `local` is a socket of this machine. */
export type LibvirtTransport = 'local' | 'ssh' | 'tls' | 'tcp' | 'ext'

/** A libvirt URI, taken apart: `driver[+transport]://[user@][host][:port]/path[?parameters]`. */
export interface LibvirtUri {
  /** `qemu`, `test`, `xen`, … as written, in lower case. */
  readonly driver: string
  readonly transport: LibvirtTransport
  readonly user: string | undefined
  /** Without the brackets of an IPv6 address; undefined for this machine. */
  readonly host: string | undefined
  readonly port: number | undefined
  /** `/system`, `/session`, … */
  readonly path: string
  readonly parameters: ReadonlyMap<string, string>
}

const FORM =
  /^([a-z0-9]+)(?:\+([a-z0-9]+))?:\/\/(?:([^@/?]*)@)?(\[[^\]/?]*\]|[^:/?]*)(?::(\d{1,5}))?([^?]*)(?:\?(.*))?$/i

const TRANSPORTS: ReadonlyMap<string, LibvirtTransport> = new Map([
  ['unix', 'local'],
  ['ssh', 'ssh'],
  ['libssh', 'ssh'],
  ['libssh2', 'ssh'],
  ['tls', 'tls'],
  ['tcp', 'tcp'],
  ['ext', 'ext'],
])

/**
 * Takes a URI apart as libvirt does: a host without a transport means TLS.
 * undefined for what is no libvirt URI; then libvirt's own complaint is the better one.
 */
export function parseLibvirtUri(uri: string): LibvirtUri | undefined {
  const match = FORM.exec(uri)
  if (match === null) return undefined
  const [, driver = '', way, user, host = '', port, path = '', query = ''] = match
  const named = host.replace(/^\[|\]$/g, '')
  const transport = way === undefined ? (named === '' ? 'local' : 'tls') : TRANSPORTS.get(way.toLowerCase())
  if (transport === undefined) return undefined
  return {
    driver: driver.toLowerCase(),
    transport,
    user: user === undefined || user === '' ? undefined : decoded(user),
    host: named === '' ? undefined : decoded(named),
    port: port === undefined ? undefined : Number(port),
    path,
    parameters: new Map(query.split(/[&;]/).flatMap(parameterOf)),
  }
}

/**
 * Whether a libvirt URI means a daemon of this machine: it names no host. A
 * host that happens to be this one still counts as remote; nobody can tell for sure.
 */
export function isLocalUri(uri: string): boolean {
  return /^[a-z0-9]+(\+unix)?:\/\/(\/|$)/i.test(uri)
}

function parameterOf(text: string): [string, string][] {
  const equals = text.indexOf('=')
  return equals <= 0 ? [] : [[text.slice(0, equals), decoded(text.slice(equals + 1))]]
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}
