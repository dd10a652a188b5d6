import { isNativeFailure } from '../base/errors.js'
import { ask } from './passphrases.js'
import type { RunContext } from './session.js'

/** The SASL user; its passphrase is VIRTVAULT_LIBVIRT_PASSPHRASE, or `_FILE`, `_COMMAND`, `_FD`. */
export const USERNAME_VARIABLE = 'VIRTVAULT_LIBVIRT_USERNAME'

/** VIR_ERR_AUTH_FAILED: libvirt asked for what nobody had given. */
const AUTH_FAILED = 45

/** What libvirt's callback is answered with. */
export interface LibvirtAccess {
  readonly uri: string
  readonly username?: string | undefined
  readonly passphrase?: string | undefined
}

/**
 * Connects with what is configured; where libvirt wants more and somebody sits
 * at a terminal, asks once for what is missing and tries again.
 */
export async function withCredentials<T>(
  session: RunContext,
  access: LibvirtAccess,
  open: (access: LibvirtAccess) => Promise<T>,
): Promise<{ readonly access: LibvirtAccess; readonly result: T }> {
  try {
    return { access, result: await open(access) }
  } catch (error) {
    if (!isLoginFailure(error) || access.passphrase !== undefined) throw error
    const username = access.username ?? (await ask(session, `User name for ${access.uri}: `, 'shown'))
    const passphrase = await ask(session, `Passphrase for ${access.uri}: `, 'hidden')
    if (passphrase === undefined) throw error
    const asked = { ...access, username, passphrase }
    return { access: asked, result: await open(asked) }
  }
}

function isLoginFailure(error: unknown): boolean {
  const cause = error instanceof Error ? error.cause : undefined
  return isNativeFailure(cause) && cause.libvirtCode === AUTH_FAILED
}
