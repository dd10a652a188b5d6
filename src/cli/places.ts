import { homedir } from 'node:os'
import { join } from 'node:path'

import type { FirmwarePlaces } from '../jobs/restore-domain.js'

/** For sockets: short-lived, and a short path. */
export function runtimeDir(): string {
  const { VIRTVAULT_RUNTIME_DIR: asked, XDG_RUNTIME_DIR: own } = process.env
  if (asked !== undefined && asked !== '') return asked
  if (process.getuid?.() === 0) return '/run/virtvault'
  return own === undefined || own === '' ? join(stateDir(), 'run') : join(own, 'virtvault')
}

/** On a disk, not in memory: QEMU puts there what the guests overwrite during a backup. */
export function defaultScratchDir(): string {
  return join(stateDir(), 'scratch')
}

export function stateDir(): string {
  const { VIRTVAULT_STATE_DIR: asked, XDG_STATE_HOME: own } = process.env
  if (asked !== undefined && asked !== '') return asked
  if (process.getuid?.() === 0) return '/var/lib/virtvault'
  return join(own === undefined || own === '' ? join(homedir(), '.local', 'state') : own, 'virtvault')
}

/**
 * Where this host's libvirt keeps UEFI variables and TPM state; a session
 * daemon has them under the user's configuration. VIRTVAULT_NVRAM_DIR and
 * VIRTVAULT_SWTPM_DIR are for a libvirt that was built with another prefix.
 */
export function firmwarePlaces(uri: string, configHome = ownConfigHome()): FirmwarePlaces {
  const { VIRTVAULT_NVRAM_DIR: nvram, VIRTVAULT_SWTPM_DIR: swtpm } = process.env
  const isSession = /^[^?]*\/session\b/.test(uri)
  const own = join(configHome, 'libvirt', 'qemu')
  return {
    nvram: filled(nvram) ?? join(isSession ? own : '/var/lib/libvirt/qemu', 'nvram'),
    swtpm: filled(swtpm) ?? join(isSession ? own : '/var/lib/libvirt', 'swtpm'),
  }
}

function ownConfigHome(): string {
  return filled(process.env['XDG_CONFIG_HOME']) ?? join(homedir(), '.config')
}

function filled(value: string | undefined): string | undefined {
  return value === '' ? undefined : value
}
