import type { LabDomain } from './lab-domain.js'
import type { Lab } from './lab.js'

/** Tells libvirt of a guest that crashes. */
export const PANIC_DEVICE = `<panic model='isa'><address type='isa' iobase='0x505'/></panic>`

/** What a guest does with these ports, done by QEMU's monitor for one that has no system. */
const GUEST_DOES = {
  /** As Linux' pvpanic driver does when the kernel panics. */
  panic: 'o /b 0x505 1',
  /** The reset register of the chip set. */
  reboot: 'o /b 0xcf9 6',
  /** ACPI's PM1a control: sleep enable, with the type of S5 and of S3. */
  powerOff: 'o /w 0x604 0x2000',
  sleep: 'o /w 0x604 0x2400',
} as const

/** What virsh says where QEMU, or libvirt with it, was quicker than the answer. */
const GONE_FIRST = /Unable to read from monitor|End of file from qemu monitor|domain is not running/

/** The domain needs no system; its firmware must have come far enough to set the ports up. */
export async function guestDoes(lab: Lab, { uuid }: LabDomain, what: keyof typeof GUEST_DOES): Promise<void> {
  const { code, stderr } = await lab.tryVirsh('qemu-monitor-command', uuid, '--hmp', GUEST_DOES[what])
  if (code !== 0 && !GONE_FIRST.test(stderr)) throw new Error(`${what}: ${stderr}`)
}
