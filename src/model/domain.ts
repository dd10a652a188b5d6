/**
 * What a domain is made of, as its XML says: enough to choose how each disk is
 * backed up, and what besides the disks must be kept to restore it.
 */
export interface DomainDescription {
  readonly uuid: string
  readonly name: string
  /** `kvm` or `qemu` as a rule. */
  readonly type: string
  /** Bytes. */
  readonly memory: number
  readonly cpus: number
  readonly machine: string | undefined
  readonly disks: readonly DomainDisk[]
  readonly firmware: DomainFirmware
  readonly tpm: DomainTpm | undefined
  readonly agent: AgentState
}

/**
 * Whether a guest agent can be asked: no channel for it; a channel of a domain
 * that does not run (or whose state libvirt does not tell); nobody in the
 * guest; somebody in the guest.
 */
export type AgentState = 'absent' | 'unknown' | 'disconnected' | 'connected'

export interface DomainFirmware {
  readonly loader: string | undefined
  readonly nvram: { readonly path: string; readonly template: string | undefined } | undefined
  /** Booted directly, without a boot loader in the disks. */
  readonly kernel: string | undefined
  readonly initrd: string | undefined
  readonly dtb: string | undefined
}

export interface DomainTpm {
  readonly model: string
  /** `emulator` has state on the host, `passthrough` does not. */
  readonly backend: string
  readonly version: string | undefined
}

/** Where a disk's bytes are. */
export type ImageSource =
  /** A drive without a medium. */
  | { readonly kind: 'none' }
  | { readonly kind: 'file'; readonly path: string }
  | { readonly kind: 'block'; readonly path: string }
  /** In a storage pool; live XML usually names what it resolves to as well. */
  | { readonly kind: 'volume'; readonly pool: string; readonly volume: string }
  | {
      readonly kind: 'network'
      readonly protocol: string
      readonly name: string
      readonly uri: string
      /** The one server, where it is spoken to without a password. */
      readonly server?: NetworkServer | undefined
      /** What the domain says of TLS, and the name that the server's certificate must have; undefined: the host decides. */
      readonly tls?: { readonly isOn: boolean; readonly hostname: string | undefined } | undefined
      /** Who we are to an iSCSI server. */
      readonly initiator?: string | undefined
    }
  /** Anything else, by libvirt's word for it: `dir`, `nvme`, `vhostuser`, ... */
  | { readonly kind: 'other'; readonly type: string }

/** A TCP port, or a Unix socket. */
export type NetworkServer =
  | { readonly kind: 'tcp'; readonly host: string; readonly port: string | undefined }
  | { readonly kind: 'unix'; readonly path: string }

/** One image of a backing chain. */
export interface ImageLayer {
  readonly source: ImageSource
  readonly format: string | undefined
}

export interface DomainDisk {
  /** As the hypervisor names it, e.g. `vda`. Unique within its domain. */
  readonly target: string
  readonly device: 'disk' | 'cdrom' | 'floppy' | 'lun'
  readonly bus: string | undefined
  readonly source: ImageSource
  /** Of the top image: `qcow2`, `raw`, ... undefined where the XML leaves it out. */
  readonly format: string | undefined
  readonly readOnly: boolean
  readonly shareable: boolean
  readonly transient: boolean
  /** False for an empty drive. */
  readonly hasMedium: boolean
  /** Below the top image, nearest first. Live XML has it; inactive XML may not. */
  readonly backingChain: readonly ImageLayer[]
  readonly serial: string | undefined
  /** Of the driver, e.g. `unmap`. */
  readonly discard: string | undefined
  readonly detectZeroes: string | undefined
  /** libvirt's number of the top image, in live XML. */
  readonly index: number | undefined
  /** Format of the encryption, e.g. `luks`, and the secret that opens it. */
  readonly encryption: { readonly format: string; readonly secret: string | undefined } | undefined
  /** File that holds the data of a qcow2 with an external data file. */
  readonly dataFile: string | undefined
}

/** One text for a source, for people and for comparing: a path, `pool/volume`, or a URI. */
export function describeSource(source: ImageSource): string {
  switch (source.kind) {
    case 'none':
      return '(no medium)'
    case 'file':
    case 'block':
      return source.path
    case 'volume':
      return `${source.pool}/${source.volume}`
    case 'network':
      return source.uri
    case 'other':
      return `(${source.type})`
  }
}
