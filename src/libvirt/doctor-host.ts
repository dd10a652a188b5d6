import { access, constants, readFile, stat, statfs } from 'node:fs/promises'
import { execFile } from 'node:child_process'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'

import { BackupError } from '../base/errors.js'
import type { DirectoryFact, DomainFact, LibvirtFact, ToolFact } from '../model/finding.js'
import type { BaseHealth } from '../model/pull-plan.js'
import type { DomainRef, PointCheckpoint } from '../model/recovery-point.js'
import { refuseBusy, refuseLocked, runningBackup } from './backup-job.js'
import { parseQemuUser, parseSecurityModels, type QemuUser } from './capabilities-xml.js'
import { listCheckpoints, soundDisks } from './checkpoints.js'
import { type Hypervisor, versionText } from './hypervisor.js'
import { offlineHealth } from './offline-checkpoints.js'
import { isOff } from './offline-images.js'

const AGENT_TIMEOUT_SECONDS = 5
const TOOL_TIMEOUT_MS = 10_000
/** Where administrators widen what AppArmor allows QEMU. */
const APPARMOR_LOCAL = [
  '/etc/apparmor.d/local/abstractions/libvirt-qemu',
  '/etc/apparmor.d/abstractions/libvirt-qemu.d/virtvault',
]

const TOOLS: readonly Omit<ToolFact, 'version'>[] = [
  {
    name: 'qemu-img',
    package: 'qemu-utils',
    neededFor: 'looking at images, and backing up domains that are off',
    isRequired: true,
  },
  { name: 'qemu-nbd', package: 'qemu-utils', neededFor: 'restore --in-place', isRequired: true },
  {
    name: 'qemu-storage-daemon',
    package: 'qemu-system-common',
    neededFor: 'backing up domains that are off',
    isRequired: true,
  },
  { name: 'nbdkit', package: 'nbdkit', neededFor: 'looking at files within disks', isRequired: false },
]

/** Looks at a libvirt host and this machine; changes nothing. */
export class DoctorHost {
  readonly uri: string
  readonly #hypervisor: Hypervisor

  constructor(hypervisor: Hypervisor) {
    this.uri = hypervisor.uri
    this.#hypervisor = hypervisor
  }

  async libvirt(): Promise<LibvirtFact> {
    const ask = this.#hypervisor.connection
    const capabilities = await ask.capabilities()
    return {
      hostname: await ask.hostname(),
      libvirtVersion: versionText(await ask.daemonVersion()),
      qemuVersion: versionText(await ask.hypervisorVersion()),
      qemuUser: parseQemuUser(capabilities),
      securityModels: parseSecurityModels(capabilities),
    }
  }

  async domainCount(): Promise<number> {
    return (await this.#hypervisor.listDomains()).length
  }

  /** Rejects with E_NOT_FOUND. */
  async domain(nameOrUuid: string): Promise<DomainFact> {
    const info = await this.#hypervisor.lookup(nameOrUuid)
    const { agent, disks } = await this.#hypervisor.describe(info.uuid)
    const ask = this.#hypervisor.connection
    let diskBytes = 0
    for (const { target, hasMedium } of disks) {
      if (!hasMedium) continue
      const size = await ask.blockInfo(info.uuid, target).catch(() => undefined)
      diskBytes += size?.capacity ?? 0
    }
    const off = await isOff(this.#hypervisor, info)
    const hasBackupJob = !off && (await runningBackup(this.#hypervisor, info)) !== undefined
    const lock = await refusal(refuseLocked(this.#hypervisor, info))
    const targets = disks.map(({ target }) => target)
    const isFree = !off && !hasBackupJob && lock === undefined
    const obstacle = isFree ? await refusal(refuseBusy(this.#hypervisor, info, targets)) : lock
    const answered =
      agent === 'connected' &&
      (await ask.agentPing(info.uuid, AGENT_TIMEOUT_SECONDS).then(
        () => true,
        () => false,
      ))
    return {
      uuid: info.uuid,
      name: info.name,
      isOff: off,
      hasManagedSave: info.hasManagedSave,
      hasBackupJob,
      obstacle,
      isLocked: lock !== undefined,
      agent,
      agentAnswers: answered,
      diskBytes,
    }
  }

  /** As a pull would find it, but redefines nothing. */
  async baseHealth(domain: DomainRef, checkpoint: PointCheckpoint, signal: AbortSignal): Promise<BaseHealth> {
    if (await isOff(this.#hypervisor, domain)) return await offlineHealth(this.#hypervisor, domain, checkpoint, signal)
    const known = (await listCheckpoints(this.#hypervisor, domain, checkpoint.name)).includes(checkpoint.name)
    return { known, soundDisks: known ? await soundDisks(this.#hypervisor, domain, checkpoint.name) : new Set() }
  }
}

/** Why not; undefined where nothing was refused. */
async function refusal(work: Promise<void>): Promise<BackupError | undefined> {
  try {
    await work
    return undefined
  } catch (error) {
    if (error instanceof BackupError) return error
    throw error
  }
}

/** The programs that commands start. */
export async function lookAtTools(): Promise<readonly ToolFact[]> {
  return await Promise.all(TOOLS.map(async tool => ({ ...tool, version: await versionOf(tool.name) })))
}

async function versionOf(tool: string): Promise<string | undefined> {
  try {
    const { stdout } = await promisify(execFile)(tool, ['--version'], { timeout: TOOL_TIMEOUT_MS })
    return /\d+(\.\d+)+/.exec(stdout)?.[0] ?? stdout.split('\n')[0] ?? ''
  } catch {
    return undefined
  }
}

/** Whether we can make a directory below, and QEMU's user pass to it: QEMU binds its socket and opens scratch files there. */
export async function lookAtDirectory(
  path: string,
  purpose: DirectoryFact['purpose'],
  qemuUser: QemuUser | undefined,
): Promise<DirectoryFact> {
  const existing = await nearest(path)
  const { bavail, bsize } = await statfs(existing)
  return { path, purpose, existing, obstacle: await obstacleAt(existing, qemuUser), free: bavail * bsize }
}

async function nearest(path: string): Promise<string> {
  const found = await stat(path).catch(() => undefined)
  return found !== undefined || path === '/' ? path : await nearest(dirname(path))
}

async function obstacleAt(existing: string, user: QemuUser | undefined): Promise<string | undefined> {
  const isOurs = await access(existing, constants.W_OK | constants.X_OK).then(
    () => true,
    () => false,
  )
  if (!isOurs) return `we may not write to ${existing}`
  if (user === undefined || user.uid === 0) return undefined
  for (let at = existing; ; at = dirname(at)) {
    const { uid, gid, mode } = await stat(at)
    const bit = uid === user.uid ? 0o100 : gid === user.gid ? 0o010 : 0o001
    if ((mode & bit) === 0) return `QEMU's user (${user.uid}:${user.gid}) may not pass through ${at}`
    if (at === dirname(at)) return undefined
  }
}

/** Whether AppArmor's local rules for QEMU mention the directory; they are not evaluated. */
export async function isAllowedByAppArmor(directory: string): Promise<boolean> {
  const texts = await Promise.all(APPARMOR_LOCAL.map(file => readFile(file, 'utf8').catch(() => '')))
  return texts.some(text => text.includes(join(directory, '/')))
}
