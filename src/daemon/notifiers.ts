import { access, constants } from 'node:fs/promises'

import { BackupError, messageOf, type Warning } from '../base/errors.js'
import type { Environment } from '../config/load.js'
import type { RawConfig } from '../config/schema.js'
import { resolveSecret, secretSourceOf } from '../config/secrets.js'
import { MINUTE_MS, SECOND_MS } from '../model/duration.js'
import { runOnHost } from './hooks.js'
import { type Notice, noticeDocument } from './notice.js'

/**
 * Ways to tell people. None of them can make a backup fail: what cannot be
 * told is a warning, without the secrets that stand in URLs.
 */
export interface Notifier {
  /** `ntfy`, `mail`, ... */
  readonly name: string
  wants(status: Notice['status']): boolean
  /** Rejects with E_UNREACHABLE, E_TIMEOUT, E_CONFIG, E_TOOL_MISSING. */
  send(notice: Notice, signal: AbortSignal): Promise<void>
  /** Something begins; only pings want to know. */
  start?(signal: AbortSignal): Promise<void>
}

export interface NotifierOptions {
  readonly env: Environment
  readonly host: string
  /** Where the mail program is looked for. */
  readonly sendmail?: string | undefined
}

type RawNotify = NonNullable<RawConfig['notify']>

const SENDMAIL = '/usr/sbin/sendmail'
const REQUEST_TIMEOUT_MS = 10 * SECOND_MS
const MAIL_TIMEOUT_MS = MINUTE_MS
/** healthchecks.io takes 100 kB. */
const MAX_BODY_BYTES = 90_000
/** To stderr of a mail in which nothing is wrong nobody listens. */
const DEFAULT_STATUSES: readonly string[] = ['failed', 'partial', 'stale']

export function makeNotifiers(notify: RawNotify | undefined, options: NotifierOptions): readonly Notifier[] {
  if (notify === undefined) return []
  const { healthchecks, ntfy, mail, webhook } = notify
  return [
    ...(healthchecks === undefined ? [] : [pings(healthchecks, options)]),
    ...(ntfy === undefined ? [] : [ntfyTopic(ntfy, options)]),
    ...(webhook === undefined ? [] : [webhookOf(webhook, options)]),
    ...(mail === undefined ? [] : [mailOf(mail, options)]),
  ]
}

/** Tells all who want to know; what fails is a warning. Never rejects. */
export async function tellAll(
  notifiers: readonly Notifier[],
  notice: Notice,
  signal: AbortSignal,
): Promise<readonly Warning[]> {
  const chosen = notifiers.filter(notifier => notice.status === 'test' || notifier.wants(notice.status))
  return await attemptAll(chosen, notifier => notifier.send(notice, signal))
}

/** Tells those who want to know that something begins. Never rejects. */
export async function tellStart(notifiers: readonly Notifier[], signal: AbortSignal): Promise<readonly Warning[]> {
  return await attemptAll(notifiers, async notifier => notifier.start?.(signal))
}

async function attemptAll(
  notifiers: readonly Notifier[],
  attempt: (notifier: Notifier) => Promise<void>,
): Promise<readonly Warning[]> {
  const found = await Promise.all(
    notifiers.map(async (notifier): Promise<Warning | undefined> => {
      try {
        await attempt(notifier)
        return undefined
      } catch (error) {
        return { code: 'W_NOTIFY', message: `${notifier.name} was not told: ${messageOf(error)}` }
      }
    }),
  )
  return found.filter(one => one !== undefined)
}

/** healthchecks.io and what speaks like it: URL/start, URL, URL/fail; /3 for partial, which is no success either. */
function pings(raw: NonNullable<RawNotify['healthchecks']>, { env }: NotifierOptions): Notifier {
  const ping = async (suffix: string, body: string, signal: AbortSignal) => {
    const url = new URL(await secretUrl('url for healthchecks', raw, { env, signal }))
    url.pathname = `${url.pathname.replace(/\/$/, '')}${suffix}`
    await post(url, { body }, signal)
  }
  return {
    name: 'healthchecks',
    wants: () => true,
    send: async (notice, signal) => {
      const suffix = { success: '', skipped: '', test: '/log', partial: '/3', failed: '/fail', stale: '/fail' }[
        notice.status
      ]
      const lines = raw.send_log === true ? [...notice.lines, '', ...logsOf(notice)] : notice.lines
      await ping(suffix, [notice.title, ...lines].join('\n'), signal)
    },
    start: async signal => {
      if (raw.start === true) await ping('/start', '', signal)
    },
  }
}

function ntfyTopic(raw: NonNullable<RawNotify['ntfy']>, { env }: NotifierOptions): Notifier {
  return {
    name: 'ntfy',
    wants: wantsOf(raw.on),
    send: async (notice, signal) => {
      const token = await secretOf('token for ntfy', 'token', raw, { env, signal })
      const isBad = notice.status === 'failed' || notice.status === 'stale'
      const headers = {
        // Header values are Latin-1 on the wire; names of domains may be anything.
        title: encodeHeader(notice.title),
        tags: isBad ? 'rotating_light' : notice.status === 'partial' ? 'warning' : 'white_check_mark',
        priority: raw.priority ?? (isBad ? 'high' : 'default'),
        ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
      }
      await post(new URL(raw.topic), { body: notice.lines.join('\n'), headers }, signal)
    },
  }
}

function webhookOf(raw: NonNullable<RawNotify['webhook']>, { env, host }: NotifierOptions): Notifier {
  return {
    name: 'webhook',
    wants: wantsOf(raw.on),
    send: async (notice, signal) => {
      const url = new URL(await secretUrl('url of the webhook', raw, { env, signal }))
      const headers = { ...raw.headers, 'content-type': 'application/json' }
      await post(url, { body: JSON.stringify(noticeDocument(notice, host)), headers, isWhole: true }, signal)
    },
  }
}

/** Through the server that `smtp` names, else the machine's own sendmail, which knows the way out. */
function mailOf(raw: NonNullable<RawNotify['mail']>, { env, host, sendmail = SENDMAIL }: NotifierOptions): Notifier {
  const to = typeof raw.to === 'string' ? [raw.to] : raw.to
  return {
    name: 'mail',
    wants: wantsOf(raw.on),
    send: async (notice, signal) => {
      const mail = { to, from: raw.from ?? `virtvault@${host}`, subject: notice.title, lines: notice.lines }
      if (raw.smtp === undefined) {
        await throughSendmail(sendmail, mailText(mail), signal)
        return
      }
      const { sendBySmtp } = await import('./smtp.js')
      const password = await secretOf('password for mail', 'password', raw.smtp, { env, signal })
      await sendBySmtp({ ...raw.smtp, password, timeoutMs: MAIL_TIMEOUT_MS }, mail, signal)
    },
  }
}

async function throughSendmail(sendmail: string, message: string, signal: AbortSignal): Promise<void> {
  try {
    await access(sendmail, constants.X_OK)
  } catch (cause) {
    throw new BackupError(
      'E_TOOL_MISSING',
      `${sendmail} is not there: install an MTA such as msmtp-mta, or name a server with mail.smtp`,
      { cause },
    )
  }
  const options = { env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin' }, timeoutMs: MAIL_TIMEOUT_MS, input: message }
  const { exit, output } = await runOnHost([sendmail, '-i', '-t'], options, signal)
  if (exit === 0) return
  throw new BackupError('E_UNREACHABLE', `sendmail ended with ${exit ?? 'a signal'}: ${output.trim().slice(0, 200)}`)
}

/** RFC 5322; a line end in a field would start another one. */
export function mailText(mail: {
  readonly to: readonly string[]
  readonly from: string
  readonly subject: string
  readonly lines: readonly string[]
}): string {
  const field = (text: string) => text.replaceAll(/[\r\n]+/g, ' ')
  const headers = [
    `From: ${field(mail.from)}`,
    `To: ${mail.to.map(field).join(', ')}`,
    `Subject: ${encodeHeader(field(mail.subject))}`,
    'MIME-Version: 1.0',
    'Content-Type: text/plain; charset=utf-8',
    'Content-Transfer-Encoding: 8bit',
    'Auto-Submitted: auto-generated',
  ]
  return [...headers, '', ...mail.lines, ''].join('\n')
}

function encodeHeader(text: string): string {
  return /^[\x20-\x7e]*$/.test(text) ? text : `=?UTF-8?B?${Buffer.from(text).toString('base64')}?=`
}

function wantsOf(on: readonly string[] | undefined): (status: string) => boolean {
  const wanted = on ?? DEFAULT_STATUSES
  return status => wanted.includes('all') || wanted.includes(status)
}

interface Message {
  readonly body: string
  readonly headers?: Readonly<Record<string, string>> | undefined
  /** Half of it would be worth nothing. */
  readonly isWhole?: boolean | undefined
}

async function post(url: URL, { body, headers = {}, isWhole }: Message, signal: AbortSignal): Promise<void> {
  const bytes = Buffer.from(body)
  const limited = AbortSignal.any([signal, AbortSignal.timeout(REQUEST_TIMEOUT_MS)])
  const { username, password } = url
  const target = new URL(url)
  // fetch() refuses URLs with a password in them.
  target.username = ''
  target.password = ''
  const login =
    username === ''
      ? {}
      : {
          authorization: `Basic ${Buffer.from(`${decodeURIComponent(username)}:${decodeURIComponent(password)}`).toString('base64')}`,
        }
  try {
    const response = await fetch(target, {
      method: 'POST',
      body: isWhole === true ? bytes : bytes.subarray(0, MAX_BODY_BYTES),
      headers: { ...login, ...headers },
      signal: limited,
      // A secret in the path must not be carried elsewhere.
      redirect: 'error',
    })
    await response.body?.cancel()
    if (response.ok) return
    throw new BackupError('E_UNREACHABLE', `${redactedUrl(url)} answered ${response.status}`)
  } catch (error) {
    if (error instanceof BackupError) throw error
    if (limited.aborted && !signal.aborted) throw new BackupError('E_TIMEOUT', `${redactedUrl(url)} did not answer`)
    const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error
    const why = messageOf(cause).replaceAll(url.href, redactedUrl(url))
    throw new BackupError('E_UNREACHABLE', `${redactedUrl(url)}: ${why}`)
  }
}

/** Scheme and host alone: with such services the path is the password. */
export function redactedUrl(url: URL): string {
  return `${url.protocol}//${url.host}/…`
}

interface SecretContext {
  readonly env: Environment
  readonly signal: AbortSignal
}

async function secretOf(
  name: string,
  key: string,
  section: object,
  { env, signal }: SecretContext,
): Promise<string | undefined> {
  const found = await resolveSecret({ name, source: secretSourceOf(section, key), env }, signal)
  return found?.secret
}

async function secretUrl(name: string, section: object, context: SecretContext): Promise<string> {
  const url = await secretOf(name, 'url', section, context)
  if (url === undefined) throw new BackupError('E_CONFIG', `there is no ${name}`)
  if (!URL.canParse(url)) throw new BackupError('E_CONFIG', `the ${name} is not a URL`)
  return url
}

function logsOf(notice: Notice): readonly string[] {
  return notice.entries.flatMap(entry => (entry.kind === 'run' ? entry.log : []))
}
