import { createTransport } from 'nodemailer'

import { BackupError, messageOf } from '../base/errors.js'

/** The server that mail goes out through. */
export interface SmtpServer {
  readonly host: string
  readonly port?: number | undefined
  readonly username?: string | undefined
  readonly password?: string | undefined
  readonly timeoutMs: number
}

export interface Mail {
  readonly to: readonly string[]
  readonly from: string
  readonly subject: string
  readonly lines: readonly string[]
}

const SUBMISSION_PORT = 587
/** TLS from the first byte; everywhere else STARTTLS. */
const TLS_PORT = 465

/**
 * Hands a mail to an SMTP server. A password goes over TLS only, except on this
 * machine. Rejects with E_UNREACHABLE, which shows no password.
 */
export async function sendBySmtp(server: SmtpServer, mail: Mail, signal: AbortSignal): Promise<void> {
  const { host, port = SUBMISSION_PORT, username, password, timeoutMs } = server
  const isHere = ['localhost', '127.0.0.1', '::1'].includes(host)
  const transport = createTransport({
    host,
    port,
    secure: port === TLS_PORT,
    requireTLS: username !== undefined && !isHere && port !== TLS_PORT,
    ...(username === undefined ? {} : { auth: { user: username, pass: password ?? '' } }),
    connectionTimeout: timeoutMs,
    greetingTimeout: timeoutMs,
    socketTimeout: timeoutMs,
    // The mail is ours; nothing in it names a file or an address to fetch.
    disableFileAccess: true,
    disableUrlAccess: true,
  })
  const onAbort = () => {
    transport.close()
  }
  signal.addEventListener('abort', onAbort, { once: true })
  try {
    await transport.sendMail({
      from: mail.from,
      to: [...mail.to],
      subject: mail.subject,
      text: mail.lines.join('\n'),
      headers: { 'Auto-Submitted': 'auto-generated' },
    })
  } catch (error) {
    throw new BackupError('E_UNREACHABLE', `mail through ${host}:${port}: ${messageOf(error)}`)
  } finally {
    signal.removeEventListener('abort', onAbort)
    transport.close()
  }
}
