import { BackupError } from '../base/errors.js'
import { isLocalUri, parseLibvirtUri } from '../model/libvirt-uri.js'
import { redactUrls } from './error-report.js'
import type { RemotePlace } from './remote-restore-wire.js'
import type { RunContext } from './session.js'
import { DEFAULT_CONNECT } from './settings.js'
import { connectMachine, type Machine } from './wire.js'

/** The libvirt of this machine; rejects with E_REFUSED where another one is named. */
export async function connectLocal(session: RunContext, what: string): Promise<Machine> {
  const uri = session.settings.connect ?? (await session.config()).config.uri ?? DEFAULT_CONNECT
  requireLocal(uri, what)
  return await connectMachine(session)
}

/** A libvirt whose machine's files can be written: this one, or one through ssh. Rejects with E_REFUSED. */
export async function connectForFiles(session: RunContext, what: string): Promise<Machine> {
  const uri = session.settings.connect ?? (await session.config()).config.uri ?? DEFAULT_CONNECT
  requireFiles(uri, what)
  return await connectMachine(session)
}

/**
 * The libvirt where something was begun earlier, of which `began` is the URI;
 * undefined means this machine. Flags and configuration may know another way to
 * the same machine, but lead to no other one. Rejects with E_REFUSED.
 */
export async function connectAgain(session: RunContext, began: string | undefined, what: string): Promise<Machine> {
  if (began === undefined) return await connectLocal(session, what)
  const now = session.settings.connect ?? (await session.config()).config.uri ?? DEFAULT_CONNECT
  const isSame =
    parseLibvirtUri(now)?.transport === 'ssh' && parseLibvirtUri(now)?.host === parseLibvirtUri(began)?.host
  return await connectMachine(session, isSame ? now : began)
}

/** The machine of a hypervisor as a place to restore to; undefined where it is this one. Rejects with E_UNREACHABLE. */
export async function openRemote(session: RunContext, machine: Machine): Promise<RemotePlace | undefined> {
  if (machine.ways.ssh === undefined) return undefined
  const { openRemotePlace } = await import('./remote-restore-wire.js')
  return await openRemotePlace(session, machine)
}

/** Throws E_REFUSED where libvirt is on another machine, which would not find `what`. */
function requireLocal(uri: string, what: string): void {
  if (isLocalUri(uri)) return
  throw new BackupError('E_REFUSED', `${redactUrls(uri)} is on another machine, which would not find ${what}`, {
    why: 'they are written on the machine that runs virtvault',
    hints: ['use the libvirt of this machine:   -c qemu:///system', 'or run virtvault on that one'],
  })
}

/** Throws E_REFUSED where libvirt is on another machine whose files cannot be reached: without ssh there is only libvirt. */
function requireFiles(uri: string, what: string): void {
  if (isLocalUri(uri) || parseLibvirtUri(uri)?.transport === 'ssh') return
  throw new BackupError('E_REFUSED', `${redactUrls(uri)} is on another machine, where ${what} cannot be written`, {
    why: 'libvirt alone gives no way to the files of its machine; ssh does',
    hints: [
      'connect through ssh:   -c qemu+ssh://root@HOST/system',
      'or restore the images here without --define, and copy them:   virtvault restore POINT --to DIR',
    ],
  })
}
