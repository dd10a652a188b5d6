import type { Environment } from './settings.js'

/** Variables that hold a secret itself, not the way to one. */
const SECRET_VARIABLES = ['VIRTVAULT_PASSPHRASE', 'VIRTVAULT_NEW_PASSPHRASE', 'VIRTVAULT_LIBVIRT_PASSPHRASE'] as const

const kept = new Map<string, string>()

/**
 * Takes secrets out of the environment of this process, so that no child gets
 * them: not the guardian, no hook, no command that prints a passphrase.
 * /proc/PID/environ shows what the process was started with whatever we do:
 * docs/security.md says so.
 */
export function hideSecrets(): void {
  for (const name of SECRET_VARIABLES) {
    const value = process.env[name]
    if (value === undefined) continue
    kept.set(name, value)
    Reflect.deleteProperty(process.env, name)
  }
}

/** The environment with the secrets that hideSecrets() took: for who resolves a secret, never for a child. */
export function secretEnvironment(): Environment {
  return { ...process.env, ...Object.fromEntries(kept) }
}

/** Keeps what came from a descriptor, which gives it only once, for the next who asks. */
export function keepFromDescriptor(variable: string, secret: string): void {
  if ((process.env[`${variable}_FD`] ?? '') === '') return
  Reflect.deleteProperty(process.env, `${variable}_FD`)
  kept.set(variable, secret)
}
