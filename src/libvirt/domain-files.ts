import { readdir, readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'

import { BackupError, errorCodeOf, messageOf, type Warning } from '../base/errors.js'
import type { DomainDescription } from '../model/domain.js'

/** A file beside the disks that a restore needs. */
export interface DomainFile {
  /** `domain-inactive.xml`, `nvram`, `tpm/tpm2-00.permall`, `kernel`, `initrd`, `dtb`, `loader`. */
  readonly name: string
  readonly bytes: Uint8Array
  /** Where it is on the hypervisor; undefined for what libvirt gives. */
  readonly path: string | undefined
}

/** Larger ones are not firmware or kernels, and would have to fit into memory. */
const MAX_FILE_BYTES = 256 * 1024 * 1024
/** Where libvirt lets swtpm keep its state, by domain UUID. */
const SWTPM_STATE_DIR = '/var/lib/libvirt/swtpm'

export interface DomainFiles {
  readonly files: readonly DomainFile[]
  readonly warnings: readonly Warning[]
}

export interface StateOfFiles {
  readonly swtpmDir?: string | undefined
  readonly isRunning: boolean
}

/** Reads files of the machine that libvirt runs on. */
export interface FileReader {
  /** Rejects with E_NOT_FOUND where there is none, and where it has more than `maxBytes`. */
  read(path: string, maxBytes: number): Promise<Uint8Array>
  /** Names in a directory; none where there is no such directory. */
  list(dir: string): Promise<readonly string[]>
}

/** Those of this machine. */
export const localReader: FileReader = {
  read: async (path, maxBytes) => {
    const { size } = await stat(path).catch((error: unknown) => {
      throw isMissing(error) ? missing(path, error) : error
    })
    if (size > maxBytes) throw new Error(`it has ${size} bytes, more than any such file should`)
    return await readFile(path)
  },
  list: dir =>
    readdir(dir).catch((error: unknown) => {
      if (isMissing(error)) return []
      throw error
    }),
}

export function missing(path: string, cause: unknown): BackupError {
  return new BackupError('E_NOT_FOUND', `${path}: no such file`, { cause })
}

/**
 * Reads UEFI variables, TPM state, and what the domain is booted from directly.
 * What is named but cannot be read is a warning: the disks are worth more than
 * a missing kernel. UEFI variables and TPM state are read while the guest may
 * write them; both are small and rarely written.
 */
export async function readDomainFiles(
  domain: DomainDescription,
  { swtpmDir = SWTPM_STATE_DIR, isRunning }: StateOfFiles,
  reader: FileReader = localReader,
): Promise<DomainFiles> {
  const { firmware, tpm } = domain
  const named: { name: string; path: string | undefined }[] = [
    { name: 'loader', path: firmware.loader },
    { name: 'nvram', path: firmware.nvram?.path },
    { name: 'kernel', path: firmware.kernel },
    { name: 'initrd', path: firmware.initrd },
    { name: 'dtb', path: firmware.dtb },
  ]
  const files: DomainFile[] = []
  const warnings: Warning[] = []
  if (tpm?.backend === 'emulator') {
    const dir = join(swtpmDir, domain.uuid)
    try {
      const state = await listTpmState(dir, reader)
      named.push(...state)
      // One that was never started has none yet.
      if (state.length === 0 && isRunning) throw new Error('there is none, though the domain runs')
    } catch (error) {
      warnings.push({
        code: 'W_FILE_SKIPPED',
        message: `the TPM's state (${dir}) is not in the recovery point: ${messageOf(error)}`,
      })
    }
  }
  for (const { name, path } of named) {
    if (path === undefined) continue
    try {
      files.push({ name, path, bytes: await reader.read(path, MAX_FILE_BYTES) })
    } catch (error) {
      // A domain that was never started has no UEFI variables yet.
      if (name === 'nvram' && !isRunning && errorCodeOf(error) === 'E_NOT_FOUND') continue
      warnings.push({
        code: 'W_FILE_SKIPPED',
        message: `${name} (${path}) is not in the recovery point: ${messageOf(error)}`,
      })
    }
  }
  return { files, warnings }
}

async function listTpmState(dir: string, reader: FileReader): Promise<{ name: string; path: string }[]> {
  const found: { name: string; path: string }[] = []
  for (const version of ['tpm2', 'tpm1.2']) {
    const names = await reader.list(join(dir, version))
    for (const name of names) {
      // The lock file is the running swtpm's own, and so is a file that it has not renamed yet.
      if (!name.startsWith('.') && !name.startsWith('TMP'))
        found.push({ name: `tpm/${version}/${name}`, path: join(dir, version, name) })
    }
  }
  return found
}

function isMissing(error: unknown): boolean {
  return error instanceof Error && 'code' in error && error.code === 'ENOENT'
}
