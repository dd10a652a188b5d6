import { randomInt } from 'node:crypto'
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import { Authority } from './certificates.js'
import { Lab, type LabNetwork } from './lab.js'
import { run } from './run-program.js'

/**
 * A lab that is another machine: in a network namespace with an address of its
 * own, with directories of its own for virtvault's runs, an sshd, and a
 * libvirtd that listens for TCP and TLS. What is under `lab.folder` has the
 * same path on both, as images on shared storage would.
 */
export class RemoteLab implements AsyncDisposable {
  readonly lab: Lab
  readonly address: string
  /** What an administrator puts into his home: key, known hosts, certificates. */
  readonly home: string
  readonly authority: Authority
  #sshdConfig: string | undefined

  private constructor(lab: Lab, address: string, authority: Authority) {
    this.lab = lab
    this.address = address
    this.home = lab.path('home')
    this.authority = authority
  }

  static async start(): Promise<RemoteLab> {
    const network = randomNetwork()
    const lab = await Lab.start(network)
    try {
      const remote = new RemoteLab(lab, network.there, await Authority.make(lab.path('ca')))
      await remote.#prepare()
      return remote
    } catch (error) {
      await lab[Symbol.asyncDispose]()
      throw error
    }
  }

  /** With the key that sshd takes and the host key that it has; `more` are further parameters of the URI. */
  sshUri(user = 'root', more = ''): string {
    return `qemu+ssh://${user}@${this.address}/system?command=${this.sshProgram}&keyfile=${join(this.home, 'key')}&no_tty=1${more}`
  }

  tcpUri(): string {
    return `qemu+tcp://${this.address}/system`
  }

  tlsUri(): string {
    return `qemu+tls://${this.address}/system?pkipath=${join(this.home, 'libvirt-pki')}`
  }

  /** `ssh` with the known hosts of this lab, which libvirt has no parameter for. */
  get sshProgram(): string {
    return join(this.home, 'ssh')
  }

  /** Certificates for QEMU's NBD server; they are read whenever a backup begins. */
  get backupPki(): string {
    return join(this.lab.folder, 'backup-pki')
  }

  async startSshd(): Promise<void> {
    await this.lab.inside('/usr/sbin/sshd -f "$(dirname "$0")/../sshd/config" -E "$(dirname "$0")/../log/sshd.log"')
  }

  /** Somebody who is not root and may use libvirt, with the key that root has. */
  async addUser(name: string): Promise<void> {
    chmodSync(this.lab.folder, 0o711)
    await this.lab.inside(`
      echo '${name}:x:64099:64099::/:/bin/sh' >>/etc/passwd
      echo '${name}:x:64099:' >>/etc/group`)
  }

  /** Ends the listener and starts it with further lines of sshd_config, which go before the others; connections live on. */
  async restartSshd(lines: readonly string[]): Promise<void> {
    const sshd = join(this.lab.folder, 'sshd')
    const config = readFileSync(join(sshd, 'config'), 'utf8')
    this.#sshdConfig ??= config
    writeFileSync(join(sshd, 'config'), [...lines, this.#sshdConfig].join('\n'))
    await this.lab.inside(`
      pid=$(cat ${sshd}/pid)
      kill "$pid"
      for i in $(seq 100); do [ -e ${sshd}/pid ] || exit 0; sleep 0.1; done; exit 1`)
    await this.startSshd()
  }

  /** Every connection that sshd took; it takes new ones. */
  async cutSsh(): Promise<void> {
    await this.lab.inside(`
      taken=$(pgrep -P "$(cat ${this.lab.folder}/sshd/pid)")
      kill -KILL $taken $(for one in $taken; do pgrep -P "$one"; done)`)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.lab[Symbol.asyncDispose]()
  }

  async #prepare(): Promise<void> {
    const { lab, home } = this
    const sshd = join(lab.folder, 'sshd')
    mkdirSync(home, { recursive: true })
    await run('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', join(home, 'key')])
    await run('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', join(sshd, 'host-key')])
    const config = [
      'Port 22',
      `HostKey ${sshd}/host-key`,
      `PidFile ${sshd}/pid`,
      `AuthorizedKeysFile ${home}/key.pub`,
      'StrictModes no',
      'UsePAM no',
      'PasswordAuthentication no',
      'KbdInteractiveAuthentication no',
      'PermitRootLogin prohibit-password',
      'MaxStartups 100',
    ]
    writeFileSync(join(sshd, 'config'), `${config.join('\n')}\n`)
    const { stdout: hostKey } = await run('ssh-keygen', ['-y', '-f', join(sshd, 'host-key')])
    writeFileSync(join(home, 'known_hosts'), `${this.address} ${hostKey}`)
    writeFileSync(this.sshProgram, `#!/bin/sh\nexec ssh -F none -o UserKnownHostsFile=${home}/known_hosts "$@"\n`)
    chmodSync(this.sshProgram, 0o755)
    await this.authority.server(this.backupPki, [`IP:${this.address}`])
    await this.authority.client(join(home, 'pki'))
    await this.authority.libvirtClient(join(home, 'libvirt-pki'))
    await this.startSshd()
  }
}

function randomNetwork(): LabNetwork {
  const net = `10.213.${randomInt(256)}`
  const base = 4 * randomInt(64)
  return {
    name: `vv${randomInt(0x1000000).toString(16)}`,
    here: `${net}.${base + 1}`,
    there: `${net}.${base + 2}`,
    libvirtdConf: folder =>
      [
        'listen_tcp = 1',
        'listen_tls = 0',
        'auth_tcp = "none"',
        'unix_sock_rw_perms = "0777"',
        `ca_file = "${folder}/libvirtd-pki/ca-cert.pem"`,
        `cert_file = "${folder}/libvirtd-pki/server-cert.pem"`,
        `key_file = "${folder}/libvirtd-pki/server-key.pem"`,
        '',
      ].join('\n'),
  }
}
