import { BackupError } from '../base/errors.js'

/** `HOST:PORT`, `[::1]:PORT`. Throws E_USAGE. */
export function parseHostPort(text: string): { readonly host: string; readonly port: number } {
  const groups = /^(?:\[(?<six>[0-9A-Fa-f:.]+)\]|(?<host>[^:[\]]+)):(?<port>\d{1,5})$/.exec(text)?.groups
  const host = groups?.['six'] ?? groups?.['host']
  const port = Number(groups?.['port'])
  if (host === undefined || !(port <= 65_535)) {
    throw new BackupError('E_USAGE', `"${text}" is no address to listen on`, {
      hints: ['write HOST:PORT, for example 127.0.0.1:10809 or [::]:10809'],
    })
  }
  return { host, port }
}
