import {
  attributeOf,
  buildXml,
  childOf,
  childrenOf,
  element,
  parseXml,
  textOfChild,
  type XmlElement,
} from './tree-xml.js'

/** Where a disk is after a restore. */
export interface RestoredSource {
  readonly kind: 'file' | 'block'
  readonly path: string
  /** `qcow2` or `raw`. */
  readonly format: string
  /**
   * An NBD export that the image is an overlay on. Where it cannot be read, the
   * domain is paused rather than its guest told of bad blocks.
   */
  readonly backing?: { readonly socket: string; readonly exportName: string } | undefined
}

export type RestoredNetwork =
  | { readonly kind: 'keep' }
  /** No interfaces at all. */
  | { readonly kind: 'none' }
  /** All interfaces on this libvirt network. */
  | { readonly kind: 'network'; readonly name: string }

export interface RestoreXmlOptions {
  readonly name: string
  /** Other than the original's makes it a copy: whatever must be unique is made anew. */
  readonly uuid: string
  readonly macs: 'keep' | 'new'
  readonly network: RestoredNetwork
  /** By target. Disks that are not in it are removed. */
  readonly disks: ReadonlyMap<string, RestoredSource>
  /** Path of the restored UEFI variables; undefined lets libvirt make fresh ones from the template. */
  readonly nvram: string | undefined
  /** Paths of the restored `kernel`, `initrd`, `dtb`, `loader`; one that is not in it keeps its path. */
  readonly bootFiles?: ReadonlyMap<string, string> | undefined
  /** Namespaces of metadata that a copy does not inherit: our own jobs. */
  readonly ownNamespaces: readonly string[]
  /** Makes a domain that runs for a test alone: without devices of the host, its first serial port into this file. */
  readonly trial?: { readonly consoleLog: string } | undefined
}

export interface RestoredXml {
  readonly xml: string
  /** What was changed or kept that its owner should know, one sentence each. */
  readonly notes: readonly string[]
}

/** What must be unique among domains and what belongs to the old host. */
interface Rewrite {
  readonly options: RestoreXmlOptions
  readonly oldName: string
  readonly isCopy: boolean
  readonly notes: Set<string>
}

/**
 * Turns the stored XML of a domain into that of its restored self or of a copy
 * (LIBVIRT.md §10.3): new disk sources without their old chains and
 * labels, CD-ROM drives empty, skipped disks gone. A copy gets new MACs where
 * asked, a new generation id, its own ports and socket paths. What could run
 * commands of the store's choosing on the host is kept and noted. Throws
 * E_LIBVIRT where the document is no domain.
 */
export function rewriteDomainXml(xml: string, options: RestoreXmlOptions): RestoredXml {
  const domain = withoutBlanks(parseXml(xml, 'domain'))
  const isCopy = textOfChild(domain, 'uuid') !== options.uuid
  const rewrite: Rewrite = { options, oldName: childOf(domain, 'name')?.text ?? '', isCopy, notes: new Set() }
  const children = domain.children.flatMap(child => domainChild(child, rewrite))
  if (childOf(domain, 'uuid') === undefined) children.unshift(element('uuid', {}, options.uuid))
  // An id is a running domain's.
  const built = buildXml(withChildren(without(domain, ['id']), children), 'lines')
  return { xml: built, notes: [...rewrite.notes] }
}

/**
 * A domain's definition with the disks of another one, by target: what an
 * instant restore ends with. All else stays as it was, also what its owner
 * changed meanwhile. Throws E_LIBVIRT.
 */
export function withDisksOf(xml: string, other: string): string {
  const targetOf = (disk: XmlElement) => attributeOf(childOf(disk, 'target'), 'dev')
  const isDisk = (one: XmlElement) => one.name === 'disk' && (attributeOf(one, 'device') ?? 'disk') === 'disk'
  const wanted = childrenOf(childOf(withoutBlanks(parseXml(other, 'domain')), 'devices'), 'disk').filter(isDisk)
  const domain = withoutBlanks(parseXml(xml, 'domain'))
  const exchanged = (one: XmlElement) =>
    isDisk(one) ? (wanted.find(disk => targetOf(disk) === targetOf(one)) ?? one) : one
  const children = domain.children.map(child =>
    child.name === 'devices' ? withChildren(child, child.children.map(exchanged)) : child,
  )
  return buildXml(withChildren(domain, children), 'lines')
}

function domainChild(child: XmlElement, rewrite: Rewrite): readonly XmlElement[] {
  const { options, isCopy, notes } = rewrite
  switch (child.name) {
    case 'name':
      return [element('name', {}, options.name)]
    case 'uuid':
      return [element('uuid', {}, options.uuid)]
    case 'genid':
      // A copy is another generation to its guest (Windows domain controllers depend on it).
      return [isCopy ? element('genid') : child]
    case 'seclabel':
      // Labels are the old host's; the new one gives its own.
      return []
    case 'metadata':
      return [
        isCopy
          ? withChildren(
              child,
              child.children.filter(one => !isOwn(one, options.ownNamespaces)),
            )
          : child,
      ]
    case 'sysinfo':
      return [isCopy ? withoutSystemUuid(child) : child]
    case 'os':
      return [
        withChildren(
          child,
          child.children.flatMap(one => firmwareChild(one, rewrite)),
        ),
      ]
    case 'devices': {
      const devices = child.children.flatMap(one => device(one, rewrite))
      return [withChildren(child, options.trial === undefined ? devices : trialDevices(devices, options.trial))]
    }
    case 'qemu:commandline':
      notes.add('It passes arguments of its own to QEMU (qemu:commandline); look at them before starting it.')
      return [child]
    default:
      return [child]
  }
}

function firmwareChild(child: XmlElement, { options }: Rewrite): readonly XmlElement[] {
  const bootFile = options.bootFiles?.get(child.name)
  if (bootFile !== undefined) return [{ ...child, text: bootFile }]
  if (child.name !== 'nvram') return [child]
  // Two domains that share this file corrupt each other, and nothing warns of it.
  const template = { template: attributeOf(child, 'template'), format: attributeOf(child, 'format') }
  if (options.nvram !== undefined) return [element('nvram', template, options.nvram)]
  return template.template === undefined ? [] : [element('nvram', template)]
}

function device(child: XmlElement, rewrite: Rewrite): readonly XmlElement[] {
  const { isCopy, notes } = rewrite
  switch (child.name) {
    case 'disk':
      return disk(child, rewrite)
    case 'interface':
      return networkInterface(child, rewrite)
    case 'channel':
    case 'serial':
    case 'parallel':
    case 'console':
      return [characterDevice(withoutAlias(child), rewrite)]
    case 'graphics':
      return [isCopy ? graphics(child) : child]
    case 'vsock':
      return [isCopy ? withChildren(child, [element('cid', { auto: 'yes' }), ...others(child, ['cid'])]) : child]
    case 'hostdev':
      notes.add('It uses a device of the host (hostdev); the new host must have it, and no other domain use it.')
      return [withoutAlias(child)]
    case 'emulator':
      if (!/^\/usr\/(local\/)?(bin|libexec|lib\/[a-z-]+)\/(qemu-|kvm$)/.test(child.text)) {
        notes.add(`Its emulator is ${child.text}; look at it before starting the domain.`)
      }
      return [child]
    default:
      return [withoutAlias(child)]
  }
}

/** What of the host a trial must not touch, nor write to. */
const NOT_IN_A_TRIAL = ['serial', 'console', 'parallel', 'hostdev', 'redirdev', 'filesystem', 'shmem', 'lease']

function trialDevices(devices: readonly XmlElement[], trial: { readonly consoleLog: string }): readonly XmlElement[] {
  const source = element('source', { path: trial.consoleLog, append: 'on' })
  const serial = withChildren(element('serial', { type: 'file' }), [source, element('target', { port: '0' })])
  return [...devices.filter(one => !NOT_IN_A_TRIAL.includes(one.name)), serial]
}

function disk(child: XmlElement, { options, notes }: Rewrite): readonly XmlElement[] {
  const target = attributeOf(childOf(child, 'target'), 'dev') ?? ''
  const kind = attributeOf(child, 'device') ?? 'disk'
  if (kind === 'cdrom' || kind === 'floppy') {
    // Its medium was not backed up, and may not exist here.
    return [withChildren(withAttributes(child, { type: 'file' }), others(child, [...OF_THE_SOURCE, 'driver', 'alias']))]
  }
  const restored = options.disks.get(target)
  if (restored === undefined) {
    notes.add(`Disk ${target} was not restored and is left out.`)
    return []
  }
  const driver = withAttributes(childOf(child, 'driver') ?? element('driver', { name: 'qemu' }), {
    type: restored.format,
    ...(restored.backing === undefined ? {} : { error_policy: 'stop', rerror_policy: 'stop' }),
  })
  const source = element('source', restored.kind === 'file' ? { file: restored.path } : { dev: restored.path })
  const attributes = { type: restored.kind, device: 'disk', snapshot: undefined, rawio: undefined, sgio: undefined }
  return [
    withChildren(withAttributes(child, attributes), [
      without(driver, DRIVER_OF_THE_SOURCE),
      source,
      ...(restored.backing === undefined ? [] : [backingStore(restored.backing)]),
      ...others(child, [...OF_THE_SOURCE, 'driver', 'alias']),
    ]),
  ]
}

function backingStore(backing: { readonly socket: string; readonly exportName: string }): XmlElement {
  const host = element('host', { transport: 'unix', socket: backing.socket })
  const source = withChildren(element('source', { protocol: 'nbd', name: backing.exportName }), [host])
  return withChildren(element('backingStore', { type: 'network' }), [
    element('format', { type: 'raw' }),
    source,
    element('backingStore'),
  ])
}

/** What describes the old image, not the guest's device. */
const OF_THE_SOURCE = ['source', 'backingStore', 'mirror', 'encryption', 'auth', 'state', 'backenddomain']
const DRIVER_OF_THE_SOURCE = ['metadata_cache']

function networkInterface(child: XmlElement, { options }: Rewrite): readonly XmlElement[] {
  const { network, macs } = options
  if (network.kind === 'none') return []
  // The name of the tap device is the host's to give.
  const dropped = ['alias', 'target', ...(macs === 'new' ? ['mac'] : [])]
  if (network.kind === 'keep') return [withChildren(child, others(child, dropped))]
  const source = element('source', { network: network.name })
  const kept = others(child, [...dropped, 'source', 'virtualport', 'vlan', 'ip', 'route', 'backend', 'script'])
  return [withChildren(withAttributes(child, { type: 'network', trustGuestRxFilters: undefined }), [source, ...kept])]
}

/** Sockets and log files that carry the old name must not be shared with the original. */
function characterDevice(child: XmlElement, { options, oldName, isCopy }: Rewrite): XmlElement {
  const device = withoutState(child)
  const source = childOf(device, 'source')
  const path = attributeOf(source, 'path')
  if (source === undefined || path === undefined) return device
  const rest = others(device, ['source'])
  const isNamed = isCopy && oldName !== '' && path.includes(oldName)
  // libvirt makes a path of its own for each start where none is given.
  if (device.name === 'channel' && (isNamed || GENERATED_PATH.test(path))) {
    return withChildren(device, [withAttributes(source, { path: undefined }), ...rest])
  }
  if (!isNamed) return device
  return withChildren(device, [withAttributes(source, { path: path.replaceAll(oldName, options.name) }), ...rest])
}

const GENERATED_PATH = /\/libvirt\/qemu\/(channel\/)?|\/channel\/target\//

/** Whether somebody answers at a channel is told of a running domain only. */
function withoutState(device: XmlElement): XmlElement {
  return withChildren(
    device,
    device.children.map(one => (one.name === 'target' ? without(one, ['state']) : one)),
  )
}

/** A fixed port or socket is taken by the original. */
function graphics(child: XmlElement): XmlElement {
  if (attributeOf(child, 'type') === 'spice' || attributeOf(child, 'type') === 'vnc') {
    const listeners = childrenOf(child, 'listen').map(one => withAttributes(one, { socket: undefined }))
    return withChildren(
      withAttributes(child, {
        port: undefined,
        tlsPort: undefined,
        websocket: undefined,
        socket: undefined,
        autoport: 'yes',
      }),
      [...listeners, ...others(child, ['listen', 'alias'])],
    )
  }
  return child
}

/** libvirt refuses a system UUID that differs from the domain's. */
function withoutSystemUuid(sysinfo: XmlElement): XmlElement {
  return withChildren(
    sysinfo,
    sysinfo.children.map(group =>
      withChildren(
        group,
        group.children.filter(entry => group.name !== 'system' || attributeOf(entry, 'name') !== 'uuid'),
      ),
    ),
  )
}

function isOwn(one: XmlElement, namespaces: readonly string[]): boolean {
  return [...one.attributes].some(([name, value]) => name.startsWith('xmlns') && namespaces.includes(value))
}

/** Aliases are a running domain's, but for those that users gave. */
function withoutAlias(child: XmlElement): XmlElement {
  return withChildren(
    child,
    child.children.filter(one => one.name !== 'alias' || attributeOf(one, 'name')?.startsWith('ua-') === true),
  )
}

/** Blanks between elements are no content. */
function withoutBlanks(of: XmlElement): XmlElement {
  const text = of.children.length > 0 && of.text.trim() === '' ? '' : of.text
  return { ...of, text, children: of.children.map(withoutBlanks) }
}

function others(parent: XmlElement, names: readonly string[]): readonly XmlElement[] {
  return parent.children.filter(child => !names.includes(child.name))
}

function withChildren(parent: XmlElement, children: readonly XmlElement[]): XmlElement {
  return { ...parent, children }
}

/** undefined removes. */
function withAttributes(of: XmlElement, changes: Readonly<Record<string, string | undefined>>): XmlElement {
  const attributes = new Map(of.attributes)
  for (const [name, value] of Object.entries(changes)) {
    if (value === undefined) attributes.delete(name)
    else attributes.set(name, value)
  }
  return { ...of, attributes }
}

function without(of: XmlElement, attributes: readonly string[]): XmlElement {
  return { ...of, attributes: new Map([...of.attributes].filter(([name]) => !attributes.includes(name))) }
}
