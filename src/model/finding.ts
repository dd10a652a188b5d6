import type { RemoteWay } from './remote-way.js'

/** One thing that was looked at before a backup fails on it. */
export interface Finding {
  readonly area: 'tools' | 'libvirt' | 'remote' | 'rights' | 'scratch' | 'store' | 'domain' | 'disk' | 'agent'
  /** ok: as it should be. note: it works, but not as well as it could. mend: something will fail. */
  readonly state: 'ok' | 'note' | 'mend'
  readonly message: string
  /** The command or sentence that mends or betters it. */
  readonly hint?: string | undefined
}

/** A program of this machine. */
export interface ToolFact {
  readonly name: string
  /** undefined: it is not installed. */
  readonly version: string | undefined
  readonly package: string
  /** What does not work without it. */
  readonly neededFor: string
  readonly isRequired: boolean
}

/** A directory that QEMU must be able to use. */
export interface DirectoryFact {
  readonly path: string
  readonly purpose: 'runtime' | 'scratch'
  /** Nearest parent that exists, where it does not itself. */
  readonly existing: string
  /** What keeps QEMU's user or us out; undefined: nothing. */
  readonly obstacle: string | undefined
  /** Bytes. */
  readonly free: number
}

/** A hypervisor on another machine: how its disks and files would be reached. */
export interface RemoteFact {
  readonly host: string
  /** undefined: that could not be decided, and `trouble` says why. */
  readonly way: RemoteWay | undefined
  /** undefined where the URI is not ssh; `trouble` where it does not work. */
  readonly ssh: { readonly user: string; readonly isRoot: boolean; readonly tools: readonly string[] } | undefined
  /** Of that machine; undefined where it is not known. */
  readonly scratch: { readonly path: string; readonly free: number | undefined } | undefined
  /** What would keep a backup from beginning. */
  readonly trouble: readonly Error[]
}

/** A libvirt daemon, as far as backups depend on it. */
export interface LibvirtFact {
  readonly hostname: string
  readonly libvirtVersion: string
  readonly qemuVersion: string
  readonly qemuUser: { readonly uid: number; readonly gid: number } | undefined
  /** `dac`, `apparmor`, `selinux`, … */
  readonly securityModels: readonly string[]
}

export interface DomainFact {
  readonly uuid: string
  readonly name: string
  readonly isOff: boolean
  readonly hasManagedSave: boolean
  /** A backup job runs on it. */
  readonly hasBackupJob: boolean
  /** Whatever else keeps a backup from beginning now: another job, a block job, a job that libvirt lost. */
  readonly obstacle: Error | undefined
  /** libvirt lets questions about its checkpoints wait for a job that runs. */
  readonly isLocked: boolean
  readonly agent: 'absent' | 'unknown' | 'disconnected' | 'connected'
  /** Whether a connected agent answers. */
  readonly agentAnswers: boolean
  /** Bytes of all its disks. */
  readonly diskBytes: number
}
