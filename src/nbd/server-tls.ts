import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createServer, type TLSSocket } from 'node:tls'

import { BackupError, messageOf } from '../base/errors.js'
import { WireSocket } from './wire-socket.js'

/** PEM texts. With `ca`, only clients with a certificate that it signed are let in. */
export interface ServerCredentials {
  readonly cert: Buffer
  readonly key: Buffer
  readonly ca: Buffer | undefined
}

/**
 * Reads `server-cert.pem`, `server-key.pem` and, where it is there,
 * `ca-cert.pem`: the names that QEMU and libvirt use. Rejects with E_NOT_FOUND.
 */
export async function readServerCredentials(directory: string): Promise<ServerCredentials> {
  const read = async (name: string) => {
    try {
      return await readFile(join(directory, name))
    } catch (cause) {
      throw new BackupError('E_NOT_FOUND', `cannot read the TLS file ${join(directory, name)}`, {
        hints: ['The directory needs server-cert.pem and server-key.pem; with ca-cert.pem clients need certificates.'],
        cause,
      })
    }
  }
  const ca = await readFile(join(directory, 'ca-cert.pem')).catch(() => undefined)
  return { cert: await read('server-cert.pem'), key: await read('server-key.pem'), ca }
}

/** Does the server's part of the TLS handshake. Rejects with E_NBD_PROTOCOL where that fails. */
export async function startServerTls(plain: WireSocket, credentials: ServerCredentials): Promise<WireSocket> {
  const socket = plain.release()
  // A server that never listens: it checks the client's certificate, which a bare TLSSocket leaves to its user.
  const server = createServer({
    cert: credentials.cert,
    key: credentials.key,
    minVersion: 'TLSv1.2',
    ...(credentials.ca === undefined ? {} : { ca: credentials.ca, requestCert: true, rejectUnauthorized: true }),
  })
  return await new Promise((resolve, reject) => {
    const fail = (error: Error | undefined) => {
      socket.destroy()
      reject(
        new BackupError(
          'E_NBD_PROTOCOL',
          `TLS failed: ${error === undefined ? 'the client has gone' : messageOf(error)}`,
        ),
      )
    }
    const onClose = () => fail(undefined)
    socket.once('close', onClose)
    server.once('tlsClientError', fail)
    server.once('secureConnection', (encrypted: TLSSocket) => {
      socket.off('close', onClose)
      resolve(new WireSocket(encrypted))
    })
    server.emit('connection', socket)
  })
}
