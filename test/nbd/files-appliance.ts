/** What needs the virtual machine of libguestfs: `npm run test:appliance`, where guestfish and guestmount are installed. */
import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import t from 'tap'

import { requires } from '../harness/requires.js'
import { script, storeImage } from './guest-images.js'

const MAIN = fileURLToPath(new URL('../../src/cli/main.cjs', import.meta.url))
const folder = mkdtempSync(join(tmpdir(), 'vv-appliance-'))
t.teardown(() => rmSync(folder, { recursive: true, force: true }))
t.setTimeout(1_800_000)

function virtvault(args: readonly string[]): {
  readonly exit: number | null
  readonly stdout: string
  readonly stderr: string
} {
  const env = { ...process.env, VIRTVAULT_TARGET: join(folder, 'store'), VIRTVAULT_RUNTIME_DIR: join(folder, 'r') }
  const { status, stdout, stderr } = spawnSync(process.execPath, [MAIN, ...args], { env })
  return { exit: status, stdout: stdout.toString(), stderr: stderr.toString() }
}

t.test('XFS, FAT and LVM through the appliance of libguestfs', requires('guestfish', 'guestmount'), async t => {
  const tree = join(folder, 'tree')
  mkdirSync(tree)
  script('cd "$1"; mkdir a; head -c 2000000 /dev/urandom >a/big; echo text >a/TEXT.TXT; tar -cf "$1.tar" .', tree)
  const image = join(folder, 'disk.img')
  script(
    `export LIBGUESTFS_BACKEND=direct; truncate -s 1200M "$1"
     guestfish --format=raw -a "$1" <<EOF
run
part-init /dev/sda gpt
part-add /dev/sda primary 2048 131071
part-add /dev/sda primary 131072 1048575
part-add /dev/sda primary 1048576 2400000
mkfs vfat /dev/sda1
mkfs xfs /dev/sda2
pvcreate /dev/sda3
vgcreate vg0 /dev/sda3
lvcreate home vg0 400
mkfs ext4 /dev/vg0/home
mount /dev/sda1 /
tar-in $2.tar /
umount /
mount /dev/sda2 /
tar-in $2.tar /
umount /
mount /dev/vg0/home /
tar-in $2.tar /
EOF`,
    image,
    tree,
  )
  await storeImage(join(folder, 'store'), image)

  const found = virtvault(['files', 'web01@latest'])
  t.match(found.stdout, /--partition 1 +vfat/)
  t.match(found.stdout, /--partition 2 +xfs/)
  t.match(found.stdout, /--partition 3 +LVM2_member/)
  t.match(found.stdout, /--volume vg0\/home +ext4/)

  for (const where of [
    ['--partition', '1'],
    ['--partition', '2'],
    ['--volume', 'vg0/home'],
  ]) {
    const out = join(folder, `out-${where.join('-').replaceAll('/', '-')}`)
    mkdirSync(out)
    const { exit, stderr } = virtvault(['cp', 'web01@latest:vda/a', out, ...where])
    t.equal(exit, 0, stderr)
    script('diff -r "$1/a" "$2/a"', tree, out)
  }
  t.match(virtvault(['files', 'web01@latest:vda/', '--partition', '3']).stderr, /--volume VG\/LV/)
})
