/**
 * Whether a libvirt URI means a daemon of this machine: it names no host. A
 * host that happens to be this one still counts as remote; nobody can tell for sure.
 */
export function isLocalUri(uri: string): boolean {
  return /^[a-z0-9]+(\+unix)?:\/\/(\/|$)/i.test(uri)
}
