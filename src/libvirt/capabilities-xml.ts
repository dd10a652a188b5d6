import { attributeOf, childOf, childrenOf, parseXml, textOfChild } from './tree-xml.js'

export interface QemuUser {
  readonly uid: number
  readonly gid: number
}

/**
 * The user that QEMU runs as by default, from the DAC security model's base
 * label (`+64055:+64055`) of `<capabilities>`. undefined where libvirt does not
 * change the user: an unprivileged session daemon.
 */
export function parseQemuUser(text: string): QemuUser | undefined {
  const host = childOf(parseXml(text, 'capabilities'), 'host')
  const dac = childrenOf(host, 'secmodel').find(model => textOfChild(model, 'model') === 'dac')
  const labels = childrenOf(dac, 'baselabel')
  const label = labels.find(each => attributeOf(each, 'type') === 'kvm') ?? labels[0]
  const match = /^\+?(\d+):\+?(\d+)$/.exec(label?.text.trim() ?? '')
  return match === null ? undefined : { uid: Number(match[1]), gid: Number(match[2]) }
}

/** Names of the security models that the daemon applies: `dac`, `apparmor`, `selinux`. */
export function parseSecurityModels(text: string): readonly string[] {
  const host = childOf(parseXml(text, 'capabilities'), 'host')
  return childrenOf(host, 'secmodel').flatMap(model => textOfChild(model, 'model') ?? [])
}
