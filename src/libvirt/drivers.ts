import { BackupError } from '../base/errors.js'
import { parseLibvirtUri } from '../model/libvirt-uri.js'

const QEMU_URI = 'use a URI such as qemu:///system or qemu+ssh://root@host/system'
const NEITHER = 'it has neither dirty bitmaps nor an NBD server to read disks from'
const ESX: Refusal = {
  why: 'VMware keeps its changed blocks behind an interface of its own',
  hints: ['back it up with a tool for vSphere', 'or move the domain to KVM:   virt-v2v -ic URI NAME', QEMU_URI],
}

interface Refusal {
  readonly why: string
  readonly hints: readonly string[]
}

/** Drivers of libvirt that have no pull-mode backup, each with the reason and the way out. */
const OTHERS: ReadonlyMap<string, Refusal> = new Map<string, Refusal>([
  ['test', { why: 'libvirt’s test driver has domains without disks', hints: [QEMU_URI] }],
  ['xen', { why: `the Xen driver: ${NEITHER}`, hints: ['back up its volumes from within the host', QEMU_URI] }],
  [
    'lxc',
    {
      why: 'a container has no disk image: its files are the host’s',
      hints: ['back up its root directory as files', QEMU_URI],
    },
  ],
  [
    'openvz',
    { why: 'a container has no disk image: its files are the host’s', hints: ['back up its files', QEMU_URI] },
  ],
  ['vz', { why: `the Virtuozzo driver: ${NEITHER}`, hints: ['use the backup of Virtuozzo', QEMU_URI] }],
  ['esx', ESX],
  ['vpx', ESX],
  ['gsx', ESX],
  ['vmwareplayer', ESX],
  ['vmwarews', ESX],
  ['vmwarefusion', ESX],
  ['hyperv', { why: `the Hyper-V driver: ${NEITHER}`, hints: ['use a backup for Hyper-V', QEMU_URI] }],
  [
    'vbox',
    { why: `the VirtualBox driver: ${NEITHER}`, hints: ['convert its disks:   qemu-img convert -f vdi', QEMU_URI] },
  ],
  ['bhyve', { why: `the bhyve driver: ${NEITHER}`, hints: ['use zfs send of its volumes', QEMU_URI] }],
  ['ch', { why: `the Cloud Hypervisor driver: ${NEITHER}`, hints: [QEMU_URI] }],
])

/**
 * Throws E_UNSUPPORTED where the URI names a driver that is known to have no
 * pull-mode backup, or a transport whose other end cannot be known. What it
 * does not know it lets pass: the daemon itself is asked for its driver.
 */
export function refuseOtherDrivers(uri: string): void {
  const parsed = parseLibvirtUri(uri)
  if (parsed === undefined) return
  const refusal = OTHERS.get(parsed.driver)
  if (refusal !== undefined) {
    throw new BackupError('E_UNSUPPORTED', `${parsed.driver}: this driver of libvirt has no pull-mode backup`, refusal)
  }
  if (parsed.transport !== 'ext') return
  throw new BackupError('E_UNSUPPORTED', `${parsed.driver}+ext: virtvault cannot follow a program of your own`, {
    why: 'the disks are read past libvirt, over a connection to the same machine, and a program hides which that is',
    hints: ['name the machine:   qemu+ssh://root@host/system?command=PROGRAM'],
  })
}
