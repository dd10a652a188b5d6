/** One disk of a lab domain, as far as its XML is concerned. */
export interface DiskXml {
  readonly target: string
  readonly path: string
  readonly format: 'qcow2' | 'raw'
  readonly readOnly: boolean
  readonly block: boolean
  /** Of the `<driver>` element, e.g. `cache='none'`. */
  readonly driver: string
}

export interface DomainXml {
  readonly name: string
  readonly uuid: string | undefined
  readonly memory: number
  readonly cpus: number
  readonly machine: 'pc' | 'q35'
  readonly disks: readonly DiskXml[]
  /**
   * 'guest': QEMU listens at the socket and libvirt connects to it. 'fake': a
   * FakeAgent listens there, and both connect.
   */
  readonly agent: { readonly kind: 'guest' | 'fake'; readonly socket: string } | undefined
  readonly kernel: { readonly image: string; readonly initrd: string; readonly arguments: string } | undefined
  readonly consoleLog: string | undefined
  /** Further children of `<devices>` and of `<domain>`. */
  readonly devices: string
  readonly elements: string
}

/**
 * libvirt talks to an agent only after a guest has opened the port. QEMU's
 * console port counts as open from the start, and is the same device otherwise.
 */
const OPEN_WITHOUT_GUEST = `
  <qemu:override>
    <qemu:device alias='ua-agent'>
      <qemu:frontend><qemu:property name='driver' type='string' value='virtconsole'/></qemu:frontend>
    </qemu:device>
  </qemu:override>`

/** Text for an attribute or element. */
export function escapeXml(text: string): string {
  return text.replace(/[&<>'"]/g, letter => `&#${letter.charCodeAt(0)};`)
}

export function diskXml(disk: DiskXml): string {
  const [type, attribute] = disk.block ? ['block', 'dev'] : ['file', 'file']
  return `
    <disk type='${type}' device='disk'>
      <driver name='qemu' type='${disk.format}' discard='unmap' ${disk.driver}/>
      <source ${attribute}='${escapeXml(disk.path)}'/>
      <target dev='${escapeXml(disk.target)}' bus='virtio'/>${disk.readOnly ? '<readonly/>' : ''}
    </disk>`
}

export function domainXml(domain: DomainXml): string {
  const { kernel } = domain
  const boot =
    kernel === undefined
      ? ''
      : `<kernel>${escapeXml(kernel.image)}</kernel><initrd>${escapeXml(kernel.initrd)}</initrd>` +
        `<cmdline>${escapeXml(kernel.arguments)}</cmdline>`
  const disks = domain.disks.map(diskXml)
  const agent =
    domain.agent === undefined
      ? ''
      : `
    <channel type='unix'>
      <source mode='${domain.agent.kind === 'fake' ? 'connect' : 'bind'}' path='${escapeXml(domain.agent.socket)}'/>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
      <alias name='ua-agent'/>
    </channel>`
  const serial =
    domain.consoleLog === undefined
      ? ''
      : `
    <serial type='file'><source path='${escapeXml(domain.consoleLog)}'/><target port='0'/></serial>`
  return `<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>${escapeXml(domain.name)}</name>${domain.uuid === undefined ? '' : `<uuid>${escapeXml(domain.uuid)}</uuid>`}
  <memory unit='b'>${domain.memory}</memory>
  <vcpu>${domain.cpus}</vcpu>
  <os><type arch='x86_64' machine='${domain.machine}'>hvm</type>${boot}</os>
  <features><acpi/></features>
  <on_crash>destroy</on_crash>${domain.elements}
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>${disks.join('')}${agent}${serial}
    <controller type='usb' model='none'/>
    <memballoon model='none'/>${domain.devices}
  </devices>${domain.agent?.kind === 'fake' ? OPEN_WITHOUT_GUEST : ''}
</domain>`
}
