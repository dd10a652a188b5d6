import { accessSync, constants, existsSync, readdirSync } from 'node:fs'
import { delimiter, join } from 'node:path'

/** What a test can need that may be absent, and how one finds out. */
const PARTS: Readonly<Record<string, () => boolean>> = {
  /** A private libvirtd needs root that may mount: see test/lab/lab.ts. */
  lab: () =>
    process.getuid?.() === 0 && ['libvirtd', 'virsh', 'qemu-system-x86_64', 'qemu-img', 'unshare'].every(onPath),
  /** An iSCSI target without a kernel module, and QEMU's driver for it. */
  iscsi: () =>
    ['tgtd', 'tgtadm'].every(onPath) &&
    readdirSync('/usr/lib').some(name => existsSync(`/usr/lib/${name}/qemu/block-iscsi.so`)),
  /** One that is another machine: test/lab/remote-lab.ts. */
  'remote-lab': () =>
    (PARTS['lab']?.() ?? false) && ['sshd', 'ssh', 'nc', 'ip', 'openssl', 'setfacl', 'saslpasswd2'].every(onPath),
}

/**
 * The `skip` option of a tap test that needs these programs (or parts named in
 * PARTS): false where all are here, otherwise the reason, which tap prints.
 *
 *     t.test('reads what nbdkit serves', requires('nbdkit'), async t => { … })
 *
 * With REQUIRE_ALL=1 or CI=true nothing may be skipped: it throws instead, so
 * that the test file fails.
 */
export function requires(...parts: readonly string[]): { readonly skip: string | false } {
  const missing = parts.filter(part => !(PARTS[part]?.() ?? onPath(part)))
  if (missing.length === 0) return { skip: false }
  const reason = `needs ${missing.join(', ')}: run bash test/setup.sh`
  if (mustRunAll()) throw new Error(`${reason} (nothing may be skipped here)`)
  return { skip: reason }
}

/** Whether a skipped test counts as a failed one. */
export function mustRunAll(): boolean {
  return process.env['REQUIRE_ALL'] === '1' || process.env['CI'] === 'true'
}

function onPath(program: string): boolean {
  const folders = [...(process.env['PATH'] ?? '').split(delimiter), '/usr/sbin', '/sbin']
  return folders.some(folder => {
    try {
      accessSync(join(folder, program), constants.X_OK)
      return true
    } catch {
      return false
    }
  })
}
