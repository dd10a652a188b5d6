import { BackupError } from '../base/errors.js'
import type {
  AgentState,
  DomainDescription,
  DomainDisk,
  DomainFirmware,
  DomainTpm,
  ImageLayer,
  ImageSource,
  NetworkServer,
} from '../model/domain.js'
import { attributeOf, childOf, childrenOf, parseXml, textOfChild, wholeNumber, type XmlElement } from './tree-xml.js'

/** Bytes by the units that libvirt accepts for sizes; it writes KiB. */
const UNITS: ReadonlyMap<string, number> = new Map([
  ['b', 1],
  ['bytes', 1],
  ['KB', 1000],
  ['k', 1024],
  ['KiB', 1024],
  ['MB', 1000 ** 2],
  ['M', 1024 ** 2],
  ['MiB', 1024 ** 2],
  ['GB', 1000 ** 3],
  ['G', 1024 ** 3],
  ['GiB', 1024 ** 3],
  ['TB', 1000 ** 4],
  ['T', 1024 ** 4],
  ['TiB', 1024 ** 4],
])

/** Layers below a disk; libvirt itself stops at 200. */
const MAX_LAYERS = 200

/**
 * Decodes a domain's XML, live or inactive. Only live XML tells a disk's
 * backing chain for certain, and whether a guest agent answers. Throws
 * E_LIBVIRT where the document is not one of libvirt's.
 */
export function parseDomainXml(text: string): DomainDescription {
  const root = parseXml(text, 'domain')
  const devices = childOf(root, 'devices')
  const os = childOf(root, 'os')
  return {
    uuid: required(textOfChild(root, 'uuid'), 'a uuid'),
    name: required(childOf(root, 'name')?.text, 'a name'),
    type: required(attributeOf(root, 'type'), 'a type'),
    memory: sizeOf(childOf(root, 'memory')),
    cpus: wholeNumber(textOfChild(root, 'vcpu')) ?? 1,
    machine: attributeOf(childOf(os, 'type'), 'machine'),
    disks: childrenOf(devices, 'disk').map(parseDisk),
    firmware: parseFirmware(os),
    tpm: parseTpm(childOf(devices, 'tpm')),
    agent: agentState(childrenOf(devices, 'channel')),
  }
}

function parseDisk(disk: XmlElement): DomainDisk {
  const driver = childOf(disk, 'driver')
  const source = childOf(disk, 'source')
  const target = childOf(disk, 'target')
  const parsed = parseSource(attributeOf(disk, 'type') ?? 'file', source)
  return {
    target: required(attributeOf(target, 'dev'), 'a target for a disk'),
    device: deviceOf(attributeOf(disk, 'device')),
    bus: attributeOf(target, 'bus'),
    source: parsed,
    format: attributeOf(driver, 'type'),
    readOnly: childOf(disk, 'readonly') !== undefined,
    shareable: childOf(disk, 'shareable') !== undefined,
    transient: childOf(disk, 'transient') !== undefined,
    hasMedium: parsed.kind !== 'none',
    backingChain: parseChain(disk),
    serial: textOfChild(disk, 'serial'),
    discard: attributeOf(driver, 'discard'),
    detectZeroes: attributeOf(driver, 'detect_zeroes'),
    index: wholeNumber(attributeOf(source, 'index')),
    encryption: parseEncryption(childOf(source, 'encryption') ?? childOf(disk, 'encryption')),
    dataFile: attributeOf(childOf(childOf(source, 'dataStore'), 'source'), 'file'),
  }
}

function deviceOf(device: string | undefined): DomainDisk['device'] {
  return device === 'cdrom' || device === 'floppy' || device === 'lun' ? device : 'disk'
}

function parseSource(type: string, source: XmlElement | undefined): ImageSource {
  switch (type) {
    case 'file':
      return pathSource('file', attributeOf(source, 'file'))
    case 'block':
      return pathSource('block', attributeOf(source, 'dev'))
    case 'volume': {
      const pool = attributeOf(source, 'pool')
      const volume = attributeOf(source, 'volume')
      return pool === undefined || volume === undefined ? { kind: 'none' } : { kind: 'volume', pool, volume }
    }
    case 'network':
      return source === undefined ? { kind: 'none' } : networkSource(source)
    default:
      return { kind: 'other', type }
  }
}

function pathSource(kind: 'file' | 'block', path: string | undefined): ImageSource {
  return path === undefined ? { kind: 'none' } : { kind, path }
}

/** The URI is for people and for comparing; nobody connects to it. */
function networkSource(source: XmlElement): ImageSource {
  const protocol = attributeOf(source, 'protocol') ?? ''
  const name = attributeOf(source, 'name') ?? ''
  const hosts = childrenOf(source, 'host').map(host => {
    const port = attributeOf(host, 'port')
    const place = attributeOf(host, 'socket') ?? attributeOf(host, 'name') ?? ''
    return port === undefined ? place : `${place}:${port}`
  })
  const uri = `${protocol}://${hosts.join(',')}/${name}`
  const [tls, hostname] = [attributeOf(source, 'tls'), attributeOf(source, 'tlsHostname')]
  return {
    kind: 'network',
    protocol,
    name,
    uri,
    server: serverOf(source),
    tls: tls === undefined ? undefined : { isOn: tls === 'yes', hostname },
    initiator: attributeOf(childOf(childOf(source, 'initiator'), 'iqn'), 'name'),
  }
}

function serverOf(source: XmlElement): NetworkServer | undefined {
  const [host, another] = childrenOf(source, 'host')
  if (host === undefined || another !== undefined || childOf(source, 'auth') !== undefined) return undefined
  const [name, path] = [attributeOf(host, 'name'), attributeOf(host, 'socket')]
  switch (attributeOf(host, 'transport') ?? 'tcp') {
    case 'tcp':
      return name === undefined ? undefined : { kind: 'tcp', host: name, port: attributeOf(host, 'port') }
    case 'unix':
      return path === undefined ? undefined : { kind: 'unix', path }
    default:
      return undefined
  }
}

function parseChain(disk: XmlElement): ImageLayer[] {
  const layers: ImageLayer[] = []
  let layer = childOf(disk, 'backingStore')
  // An empty element ends the chain.
  while (layer !== undefined && attributeOf(layer, 'type') !== undefined && layers.length < MAX_LAYERS) {
    const source = parseSource(attributeOf(layer, 'type') ?? '', childOf(layer, 'source'))
    layers.push({ source, format: attributeOf(childOf(layer, 'format'), 'type') })
    layer = childOf(layer, 'backingStore')
  }
  return layers
}

function parseEncryption(encryption: XmlElement | undefined): DomainDisk['encryption'] {
  if (encryption === undefined) return undefined
  const secret = attributeOf(childOf(encryption, 'secret'), 'uuid')
  return { format: attributeOf(encryption, 'format') ?? 'default', secret }
}

function parseFirmware(os: XmlElement | undefined): DomainFirmware {
  const path = textOfChild(os, 'nvram')
  return {
    loader: textOfChild(os, 'loader'),
    nvram: path === undefined ? undefined : { path, template: attributeOf(childOf(os, 'nvram'), 'template') },
    kernel: textOfChild(os, 'kernel'),
    initrd: textOfChild(os, 'initrd'),
    dtb: textOfChild(os, 'dtb'),
  }
}

function parseTpm(tpm: XmlElement | undefined): DomainTpm | undefined {
  if (tpm === undefined) return undefined
  const backend = childOf(tpm, 'backend')
  return {
    model: attributeOf(tpm, 'model') ?? '',
    backend: attributeOf(backend, 'type') ?? '',
    version: attributeOf(backend, 'version'),
  }
}

function agentState(channels: readonly XmlElement[]): AgentState {
  const targets = channels.map(channel => childOf(channel, 'target'))
  const agent = targets.find(target => attributeOf(target, 'name') === 'org.qemu.guest_agent.0')
  if (agent === undefined) return 'absent'
  const state = attributeOf(agent, 'state')
  return state === 'connected' || state === 'disconnected' ? state : 'unknown'
}

function sizeOf(size: XmlElement | undefined): number {
  const unit = UNITS.get(attributeOf(size, 'unit') ?? 'KiB')
  const value = wholeNumber(size?.text.trim())
  return unit === undefined || value === undefined ? 0 : value * unit
}

function required(value: string | undefined, what: string): string {
  if (value === undefined || value === '') throw new BackupError('E_LIBVIRT', `libvirt gave a domain without ${what}`)
  return value
}
