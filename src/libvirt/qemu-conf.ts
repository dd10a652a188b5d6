/** The part of libvirt's qemu.conf that says how QEMU is a client of NBD servers. */
export interface NbdTlsConf {
  /** Whether TLS is spoken where the domain does not say. */
  readonly isDefault: boolean
  /** Directories of certificates: the first that exists. */
  readonly certificates: readonly string[]
  /** Its private key is encrypted with a secret of libvirt's. */
  readonly hasSecret: boolean
}

const DEFAULT_DIRECTORY = '/etc/pki/qemu'
/** Taken by libvirt where it exists and nothing else is said. */
const NBD_DIRECTORY = '/etc/pki/libvirt-nbd'

/** Decodes qemu.conf; empty text gives the defaults. */
export function nbdTlsConf(text: string): NbdTlsConf {
  const values = new Map<string, string>()
  for (const line of text.split('\n')) {
    const [, name, quoted, plain] = /^\s*(\w+)\s*=\s*(?:"([^"]*)"|(\d+))/.exec(line) ?? []
    if (name !== undefined) values.set(name, quoted ?? plain ?? '')
  }
  const directory = values.get('nbd_tls_x509_cert_dir')
  const fallback = values.get('default_tls_x509_cert_dir') ?? DEFAULT_DIRECTORY
  return {
    isDefault: values.get('nbd_tls') === '1',
    certificates: directory === undefined ? [NBD_DIRECTORY, fallback] : [directory],
    hasSecret: values.has('nbd_tls_x509_secret_uuid') || values.has('default_tls_x509_secret_uuid'),
  }
}
