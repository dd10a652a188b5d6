import { copyFileSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import { run } from './run-program.js'

/** Certificate authorities of tests, and what they sign. */
export class Authority {
  readonly #folder: string

  private constructor(folder: string) {
    this.#folder = folder
  }

  static async make(folder: string): Promise<Authority> {
    mkdirSync(folder, { recursive: true })
    const authority = new Authority(folder)
    await openssl(
      folder,
      ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj', '/CN=Test CA'],
      ['-keyout', 'ca-key.pem', '-out', 'ca-cert.pem'],
    )
    return authority
  }

  /** `server-cert.pem`, `server-key.pem` and `ca-cert.pem` into `target`; `days` below 0 makes one that has expired. */
  async server(target: string, names: readonly string[], days = 2): Promise<void> {
    await this.#sign(target, { role: 'server', extensions: `subjectAltName=${names.join(',')}`, days })
  }

  /** `client-cert.pem`, `client-key.pem` and `ca-cert.pem` into `target`. */
  async client(target: string): Promise<void> {
    await this.#sign(target, { role: 'client', extensions: 'extendedKeyUsage=clientAuth', days: 2 })
  }

  /** As libvirt's own TLS wants them: `cacert.pem`, `clientcert.pem`, `clientkey.pem`. */
  async libvirtClient(target: string): Promise<void> {
    await this.client(target)
    for (const [from, to] of [
      ['ca-cert.pem', 'cacert.pem'],
      ['client-cert.pem', 'clientcert.pem'],
      ['client-key.pem', 'clientkey.pem'],
    ] as const) {
      copyFileSync(join(target, from), join(target, to))
    }
  }

  async #sign(
    target: string,
    what: { readonly role: 'server' | 'client'; readonly extensions: string; readonly days: number },
  ): Promise<void> {
    const { role, extensions, days } = what
    mkdirSync(target, { recursive: true })
    const request = ['req', '-newkey', 'rsa:2048', '-nodes', '-subj', `/CN=${role}`, '-keyout', `${role}-key.pem`]
    await openssl(target, request, ['-out', 'request.pem'])
    writeFileSync(join(target, 'extensions'), `${extensions}\nbasicConstraints=CA:FALSE\n`)
    const ca = (name: string) => join(this.#folder, name)
    if (days > 0) {
      const sign = ['x509', '-req', '-in', 'request.pem', '-CA', ca('ca-cert.pem'), '-CAkey', ca('ca-key.pem')]
      await openssl(target, sign, [
        '-CAcreateserial',
        '-extfile',
        'extensions',
        '-days',
        String(days),
        '-out',
        `${role}-cert.pem`,
      ])
    } else {
      // `x509 -days` takes no past; `ca` takes dates.
      writeFileSync(join(target, 'index.txt'), '')
      writeFileSync(
        join(target, 'ca.conf'),
        '[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\nrand_serial=yes\n[p]\ncommonName=supplied\n',
      )
      const dates = ['-startdate', '20200101000000Z', '-enddate', '20200201000000Z']
      const sign = ['ca', '-batch', '-config', 'ca.conf', '-cert', ca('ca-cert.pem'), '-keyfile', ca('ca-key.pem')]
      await openssl(target, sign, [
        ...dates,
        '-extfile',
        'extensions',
        '-notext',
        '-in',
        'request.pem',
        '-out',
        `${role}-cert.pem`,
      ])
    }
    copyFileSync(ca('ca-cert.pem'), join(target, 'ca-cert.pem'))
  }
}

async function openssl(cwd: string, command: readonly string[], more: readonly string[]): Promise<void> {
  await run('openssl', [...command, ...more], { cwd })
}
