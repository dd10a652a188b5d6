import { BackupError, errorCodeOf, messageOf } from '../base/errors.js'
import type { DirectoryFact, DomainFact, Finding, LibvirtFact, RemoteFact, ToolFact } from '../model/finding.js'
import { type BaseHealth, planPull, type PullPlan, type SurveyedDisk } from '../model/pull-plan.js'
import type { DomainRef, PointCheckpoint, RecoveryPoint } from '../model/recovery-point.js'
import { formatSize } from '../model/size.js'
import type { StorePort } from '../store/store-types.js'
import type { DomainSurvey } from './pull-ports.js'
import { remoteFindings } from './remote-findings.js'

/** Less than this on the store's or the scratch's file system: backups are given up soon. */
const MIN_FREE_BYTES = 1024 ** 3

export interface DoctorPorts {
  tools(): Promise<readonly ToolFact[]>
  /** Rejects with E_LIBVIRT_CONNECT, E_LIBVIRT_DENIED, E_UNSUPPORTED. */
  connect(): Promise<DoctorMachine>
  /** Rejects with E_USAGE where no store is named, E_NO_STORE, E_STORE_FORMAT, E_KEY, E_LOCKED. */
  openStore(): Promise<{ readonly store: DoctorStore; readonly free: number }>
  lookAtDirectory(purpose: DirectoryFact['purpose'], qemuUser: LibvirtFact['qemuUser']): Promise<DirectoryFact>
  isAllowedByAppArmor(directory: string): Promise<boolean>
}

export type DoctorStore = Pick<StorePort, 'points' | 'location' | 'encrypted'> & AsyncDisposable

export interface DoctorMachine extends AsyncDisposable {
  readonly host: {
    readonly uri: string
    libvirt(): Promise<LibvirtFact>
    domainCount(): Promise<number>
    domain(nameOrUuid: string): Promise<DomainFact>
    baseHealth(domain: DomainRef, checkpoint: PointCheckpoint, signal: AbortSignal): Promise<BaseHealth>
  }
  readonly isLocal: boolean
  /** Of a libvirt on another machine. Never rejects. */
  remote(): Promise<RemoteFact>
  survey(domain: DomainRef, signal: AbortSignal): Promise<DomainSurvey>
}

/**
 * Says what a backup would meet, without making one: what is broken is a
 * finding, not a failure. Changes nothing.
 */
export class DoctorJob {
  readonly #ports: DoctorPorts

  constructor(ports: DoctorPorts) {
    this.#ports = ports
  }

  /** Rejects with E_NOT_FOUND where libvirt has no such domain, E_INTERRUPTED. */
  async run(domain: string | undefined, signal: AbortSignal): Promise<readonly Finding[]> {
    const findings = toolFindings(await this.#ports.tools())
    const opened = await this.#ports.openStore().catch((error: unknown) => {
      findings.push(failed('store', error))
      return undefined
    })
    await using store = opened?.store
    if (opened !== undefined) findings.push(...(await storeFindings(opened.store, opened.free)))
    const connected = await this.#ports.connect().catch((error: unknown) => {
      findings.push(failed('libvirt', error))
      return undefined
    })
    await using machine = connected
    if (machine === undefined) return findings
    const scratch = await this.#hostFindings(machine, findings)
    if (domain === undefined) {
      const count = await machine.host.domainCount()
      findings.push(ok('domain', `${count} domains; look at one with its name:   virtvault doctor DOMAIN`))
      return findings
    }
    const fact = await machine.host.domain(domain)
    findings.push(...domainFindings(fact), ...agentFindings(fact))
    if (fact.isLocked)
      findings.push(note('disk', 'not looked at: libvirt tells nothing of bitmaps meanwhile', undefined))
    else findings.push(...(await this.#diskFindings(machine, fact, store, signal)))
    if (scratch !== undefined) findings.push(roomFinding(fact, scratch))
    return findings
  }

  /** Gives back the scratch directory where it is on this machine. */
  async #hostFindings(machine: DoctorMachine, findings: Finding[]): Promise<DirectoryFact | undefined> {
    const { host, isLocal } = machine
    const fact = await host.libvirt()
    findings.push(
      ok('libvirt', `${host.uri} on ${fact.hostname}: libvirt ${fact.libvirtVersion}, QEMU ${fact.qemuVersion}`),
    )
    if (!isLocal) {
      const { trouble, ...there } = await machine.remote()
      findings.push(...remoteFindings(there), ...trouble.map(error => failed('remote', error)))
      return undefined
    }
    for (const purpose of ['runtime', 'scratch'] as const) {
      const directory = await this.#ports.lookAtDirectory(purpose, fact.qemuUser)
      findings.push(directoryFinding(directory))
      if (fact.securityModels.includes('apparmor') && !(await this.#ports.isAllowedByAppArmor(directory.path))) {
        findings.push(appArmorFinding(directory))
      }
      if (purpose === 'scratch') return directory
    }
    return undefined
  }

  async #diskFindings(
    machine: DoctorMachine,
    domain: DomainFact,
    store: DoctorStore | undefined,
    signal: AbortSignal,
  ): Promise<Finding[]> {
    const survey = await machine.survey(domain, signal)
    const latest = await newestPoint(store, domain.uuid)
    const checkpoint = latest?.checkpoint
    const health =
      checkpoint === undefined
        ? { known: false, soundDisks: new Set<string>() }
        : await machine.host.baseHealth(domain, checkpoint, signal)
    const files = survey.warnings.map(({ message }) => note('domain', message, undefined))
    try {
      const plan = planPull(domain, survey.disks, { mode: 'auto', only: [], except: [] }, latest, health)
      return [...planFindings(plan, survey.disks, latest), ...files]
    } catch (error) {
      if (!(error instanceof BackupError)) throw error
      return [failed('disk', error), ...files]
    }
  }
}

async function newestPoint(store: DoctorStore | undefined, uuid: string): Promise<RecoveryPoint | undefined> {
  // Points that cannot be read have a finding of their own.
  return await store?.points.latest(uuid).catch(() => undefined)
}

function toolFindings(tools: readonly ToolFact[]): Finding[] {
  return tools.map(tool => {
    if (tool.version !== undefined) return ok('tools', `${tool.name} ${tool.version}`)
    const make = tool.isRequired ? mend : note
    return make('tools', `${tool.name} is not installed: ${tool.neededFor}`, `apt install ${tool.package}`)
  })
}

async function storeFindings(store: DoctorStore, free: number): Promise<Finding[]> {
  const findings: Finding[] = []
  const unreadable = await store.points.unreadable()
  const kind = store.encrypted ? 'encrypted' : 'not encrypted'
  if (unreadable.length === 0) {
    const points = await store.points.list()
    const domains = new Set(points.map(point => point.domain.uuid)).size
    findings.push(ok('store', `${store.location} opens, ${kind}: ${points.length} points of ${domains} domains`))
  } else {
    const [first] = unreadable
    const message = `${unreadable.length} recovery points cannot be read, ${first?.file ?? ''}: ${first?.error.message ?? ''}`
    findings.push(mend('store', message, 'see what is whole:   virtvault verify --all'))
  }
  const room = `${formatSize(free)} free on the store's file system`
  findings.push(
    free < MIN_FREE_BYTES ? mend('store', room, 'make room: virtvault prune, then virtvault gc') : ok('store', room),
  )
  return findings
}

function directoryFinding({ path, purpose, existing, obstacle, free }: DirectoryFact): Finding {
  const what = `${purpose} directory ${path}`
  const variable = purpose === 'runtime' ? 'VIRTVAULT_RUNTIME_DIR' : 'VIRTVAULT_SCRATCH_DIR'
  if (obstacle !== undefined) {
    const pass = /pass through (.*)$/.exec(obstacle)?.[1]
    const hint = pass === undefined ? `run as root, or choose another with ${variable}` : `chmod o+x ${pass}`
    return mend('rights', `${what}: ${obstacle}`, hint)
  }
  if (purpose === 'scratch' && free < MIN_FREE_BYTES) {
    return mend('scratch', `${what} has only ${formatSize(free)} free`, `choose another with ${variable}`)
  }
  return ok('rights', `${what} can be used${existing === path ? '' : `, and will be made in ${existing}`}`)
}

function appArmorFinding({ path }: DirectoryFact): Finding {
  const rule = `  ${path}/** rwk,`
  return mend(
    'rights',
    `AppArmor does not let QEMU use ${path}`,
    `echo '${rule}' >> /etc/apparmor.d/local/abstractions/libvirt-qemu; running domains see it after a restart`,
  )
}

function domainFindings(domain: DomainFact): Finding[] {
  const { name } = domain
  const findings = [ok('domain', `${name} is ${domain.isOff ? 'off: its images are read directly' : 'running'}`)]
  if (domain.hasManagedSave) {
    const message = `${name} has a saved memory: its disks are as after a power cut`
    findings.push(note('domain', message, `start it:   virsh start ${name}`))
  }
  if (domain.hasBackupJob) {
    const message = `a backup job runs on ${name}: another one is refused until it ends`
    findings.push(mend('domain', message, `wait for it; if nobody is behind it:   virsh domjobabort ${name}`))
  }
  if (domain.obstacle !== undefined) findings.push(failed('domain', domain.obstacle))
  return findings
}

function agentFindings({ name, agent, agentAnswers, isOff }: DomainFact): Finding[] {
  if (isOff) return []
  switch (agent) {
    case 'absent':
      return [
        note(
          'agent',
          `${name} has no channel for a guest agent: points are as after a power cut`,
          "add <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>:   virsh edit " +
            name,
        ),
      ]
    case 'connected':
      if (agentAnswers) return [ok('agent', 'the guest agent answers: file systems are frozen for the checkpoint')]
      return [note('agent', 'the guest agent does not answer', 'in the guest:   systemctl restart qemu-guest-agent')]
    case 'unknown':
    case 'disconnected':
      return [
        note(
          'agent',
          'no agent runs in the guest: points are as after a power cut',
          'in the guest:   systemctl enable --now qemu-guest-agent',
        ),
      ]
  }
}

function planFindings(plan: PullPlan, surveyed: readonly SurveyedDisk[], latest: RecoveryPoint | undefined): Finding[] {
  return surveyed.map(({ target, source, reason }) => {
    const skipped = plan.skipped.find(disk => disk.target === target)
    if (skipped !== undefined) return note('disk', `${target} is left out: ${skipped.reason}`, undefined)
    const what = `${target} (${source.format}, ${source.path})`
    const planned = plan.disks.find(disk => disk.target === target)
    if (planned?.base !== undefined) {
      return ok('disk', `${what}: incremental since @${latest?.id.slice(0, 7) ?? ''}, its bitmap is sound`)
    }
    const why = plan.warnings.find(({ message }) => message.startsWith(`${target}: `))?.message.slice(target.length + 2)
    if (planned?.tracked === false)
      return note('disk', `${what}: read in full every time: ${reason ?? ''}`, convertHint(source.format))
    if (latest === undefined) return ok('disk', `${what}: read in full the first time, incremental from then on`)
    return note('disk', `${what}: ${why ?? 'read in full'}`, 'the next pull mends it')
  })
}

function convertHint(format: string): string | undefined {
  return format === 'raw' ? 'qcow2 images keep dirty bitmaps:   qemu-img convert -O qcow2 OLD NEW.qcow2' : undefined
}

function roomFinding({ diskBytes, isOff, name }: DomainFact, { free, path }: DirectoryFact): Finding {
  if (isOff) return ok('scratch', `${name} is off and needs no scratch room`)
  const room = `${formatSize(free)} free for scratch in ${path}, disks of ${formatSize(diskBytes)}`
  if (free >= diskBytes) return ok('scratch', `${room}: enough, whatever the guest writes meanwhile`)
  return note('scratch', `${room}: a guest that overwrites more than that during a backup ends it`, '--scratch-dir DIR')
}

function failed(area: Finding['area'], error: unknown): Finding {
  const why = error instanceof BackupError && error.why !== undefined ? `: ${error.why}` : ''
  const hints = error instanceof BackupError && error.hints.length > 0 ? error.hints.join('; ') : undefined
  // Who has to log in is helped by no group.
  const own = hints?.includes('VIRTVAULT_LIBVIRT_') === true ? undefined : hintFor(errorCodeOf(error))
  return mend(area, `${messageOf(error)}${why} [${errorCodeOf(error)}]`, own ?? hints)
}

function hintFor(code: string): string | undefined {
  if (code === 'E_LIBVIRT_DENIED') return 'usermod -aG libvirt USER, and log in again; or run as root'
  return code === 'E_NO_STORE' ? 'virtvault init STORE, or mount the disk that it is on' : undefined
}

function ok(area: Finding['area'], message: string): Finding {
  return { area, state: 'ok', message }
}

function note(area: Finding['area'], message: string, hint: string | undefined): Finding {
  return { area, state: 'note', message, hint }
}

function mend(area: Finding['area'], message: string, hint: string | undefined): Finding {
  return { area, state: 'mend', message, hint }
}
