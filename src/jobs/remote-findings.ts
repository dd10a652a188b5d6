import type { Finding, RemoteFact } from '../model/finding.js'
import { formatSize } from '../model/size.js'

/** What `doctor` says of a hypervisor on another machine; what is broken there comes as `trouble`. */
export function remoteFindings(fact: Omit<RemoteFact, 'trouble'>): Finding[] {
  return [...wayFindings(fact), ...sshFindings(fact), ...scratchFindings(fact)]
}

function wayFindings({ way, host, ssh }: Omit<RemoteFact, 'trouble'>): Finding[] {
  if (way === undefined) return []
  if (way.kind === 'tunnel') {
    if (ssh === undefined) return []
    return [ok(`disks of ${host} are tunnelled through ssh as ${ssh.user}: no port besides ssh is needed`)]
  }
  const ports = way.firstPort === way.lastPort ? `port ${way.firstPort}` : `a port of ${way.firstPort}-${way.lastPort}`
  const place = `disks of ${host} are read over TCP: QEMU listens at ${way.bind ?? `the address of ${way.host}`}, ${ports}`
  if (way.tls === undefined) {
    const message = `${place}, in clear text: whoever reaches it can read them`
    return [note(message, 'use TLS or ssh: leave --insecure and `remote: { insecure: true }` out')]
  }
  return [
    ok(`${place}, with TLS; our certificates are in ${way.tls.certificates}, and the server's must name ${way.host}`),
  ]
}

function sshFindings({ ssh, host, way }: Omit<RemoteFact, 'trouble'>): Finding[] {
  if (ssh === undefined) {
    if (way?.kind !== 'tcp') return []
    const message = `without ssh UEFI variables, TPM state and kernels of ${host} cannot be read, nor its domains that are off (only with --start-paused)`
    return [note(message, `connect through ssh:   -c qemu+ssh://root@${host}/system`)]
  }
  const findings: Finding[] = []
  if (!ssh.isRoot && ssh.tools.includes('setfacl')) {
    findings.push(ok(`as ${ssh.user} we and QEMU's user reach one another's files by an access list (setfacl)`))
  } else if (!ssh.isRoot) {
    findings.push(
      mend(
        `${ssh.user} is not root, and ${host} has no setfacl to share a directory with QEMU's user`,
        'apt install acl, over there; or connect as root',
      ),
    )
  }
  if (!ssh.tools.includes('qemu-img')) {
    findings.push(
      note(
        `${host} has no qemu-img: what its images are is known only as far as libvirt says`,
        'apt install qemu-utils, over there',
      ),
    )
  }
  findings.push(offFinding(ssh, host))
  return findings
}

function offFinding({ tools, isRoot, user }: NonNullable<RemoteFact['ssh']>, host: string): Finding {
  const missing = ['qemu-img', 'qemu-storage-daemon'].filter(tool => !tools.includes(tool))
  if (missing.length > 0) {
    return note(
      `${host} has no ${missing.join(', no ')}: its domains that are off cannot be read`,
      'apt install qemu-utils qemu-system-common, over there; or pull them with --start-paused',
    )
  }
  if (isRoot) return ok(`domains that are off are read there, by qemu-storage-daemon on ${host}`)
  const message = `domains that are off are read there as ${user}, who must be allowed to read and write their images`
  return note(message, `connect as root:   -c qemu+ssh://root@${host}/system`)
}

function scratchFindings({ scratch, host }: Omit<RemoteFact, 'trouble'>): Finding[] {
  if (scratch === undefined) return []
  if (scratch.free !== undefined)
    return [ok(`${formatSize(scratch.free)} free for scratch in ${scratch.path} on ${host}`)]
  const message = `scratch goes to ${scratch.path} on ${host}, which must exist; how much room it has is not known without ssh`
  return [note(message, 'set --scratch-limit, so that a backup is given up before it is full')]
}

function ok(message: string): Finding {
  return { area: 'remote', state: 'ok', message }
}

function note(message: string, hint: string): Finding {
  return { area: 'remote', state: 'note', message, hint }
}

function mend(message: string, hint: string): Finding {
  return { area: 'remote', state: 'mend', message, hint }
}
