import { writeFileSync } from 'node:fs'
import { join } from 'node:path'

import { cliEnvironment } from '../demo/virtvault-cli.js'
import type { Lab } from '../lab/lab.js'
import type { LabDomain } from '../lab/lab-domain.js'
import { run } from '../lab/run-program.js'
import { type Contestant, PROGRAM } from './suite.js'

/** A running domain whose disk holds what a raw file has. */
export async function startDomain(lab: Lab, name: string, disks: readonly DomainDisk[]): Promise<LabDomain> {
  const domain = await lab.domain({ name, disks: disks.map(({ target, size }) => ({ target, size })) })
  for (const { target, raw } of disks) {
    if (raw !== undefined) await run('qemu-img', ['convert', '-n', '-O', 'qcow2', raw, domain.disk(target).path])
  }
  await domain.start()
  return domain
}

export interface DomainDisk {
  readonly target: string
  readonly size: number
  readonly raw?: string | undefined
}

/** Starts a pull-mode job with virsh, as any client would, and gives the socket that serves the disk as `vda`. */
export async function beginExport(lab: Lab, domain: LabDomain): Promise<string> {
  const socket = join(lab.scratchFolder, 'bench.sock')
  await lab.virsh('backup-begin', domain.uuid, exportXml(lab, domain, socket))
  return socket
}

/** The file with what `virsh backup-begin` is told. */
export function exportXml(lab: Lab, domain: LabDomain, socket: string): string {
  const disks = domain.disks.map(
    ({ target }) =>
      `<disk name='${target}' backup='yes' type='file' exportname='${target}'>` +
      `<scratch file='${join(lab.scratchFolder, `bench-${target}.scratch`)}'/></disk>`,
  )
  const file = lab.path(`${domain.name}-export.xml`)
  writeFileSync(
    file,
    `<domainbackup mode='pull'><server transport='unix' socket='${socket}'/>` +
      `<disks>${disks.join('')}</disks></domainbackup>`,
  )
  return file
}

export async function endExport(lab: Lab, domain: LabDomain): Promise<void> {
  await lab.virsh('domjobabort', domain.uuid)
}

/** Every checkpoint goes, whoever made it: the next pull is a first one. */
export async function dropCheckpoints(lab: Lab, domain: LabDomain): Promise<void> {
  for (const name of await domain.checkpoints()) await lab.virsh('checkpoint-delete', domain.uuid, name)
}

/** The whole command, as a user runs it. */
export function pullCommand(lab: Lab, store: string, ...words: readonly string[]): Pick<Contestant, 'command' | 'env'> {
  return {
    command: [process.execPath, PROGRAM, 'backup', 'pull', ...words, '-c', lab.uri, '-t', store, '--quiet'],
    env: cliEnvironment(lab),
  }
}

/** virtnbdbackup into `folder`. */
export function virtnbdbackup(
  lab: Lab,
  domain: string,
  folder: string,
  words: readonly string[],
): Contestant['command'] {
  const places = ['-o', folder, '-S', lab.scratchFolder, '-f', join(lab.scratchFolder, 'virtnbdbackup.sock')]
  return ['virtnbdbackup', ...peerAccess(lab), '-d', domain, ...places, '-n', ...words]
}

export function virtnbdrestore(lab: Lab): Contestant['command'] {
  return ['virtnbdrestore', ...peerAccess(lab)]
}

/** They take a URI that names a socket only with a user and a password, which nobody then asks for. */
function peerAccess(lab: Lab): string[] {
  return ['-U', lab.uri, '--user', 'nobody', '--password', 'none']
}
