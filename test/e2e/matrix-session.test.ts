import { chmodSync, mkdirSync, mkdtempSync, rmSync, statfsSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import t, { type Test } from 'tap'

import { requires } from '../harness/requires.js'
import { run } from '../lab/run-program.js'

t.setTimeout(300_000)
const REPOSITORY = fileURLToPath(new URL('../../../', import.meta.url))

/** As a user does who has nothing but an account: libvirt starts its session daemon by itself, and QEMU is the user's own. */
const STORY = `
set -u
virtvault() { "$T/node" "$T/repo/dist/src/cli/main.cjs" "$@"; }
virsh() { command virsh -q -c qemu:///session "$@"; }
write() { virsh qemu-monitor-command sess --hmp "qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend \\"$1\\"" && qemu-io -f raw -c "$1" "$T/truth" >/dev/null; }
step() { name=$1; shift; "$@" >"$T/out/$name" 2>&1; echo "step $name $?"; }
same() { qemu-img compare -f qcow2 -F raw "$T/img/$1/vda.qcow2" "$T/truth"; }
mkdir -p "$T/img" "$T/out"
truncate --size 16M "$T/truth"
qemu-img create -q -f qcow2 "$T/img/vda.qcow2" 16M
step define virsh define "$T/domain.xml"
step start virsh start sess
step init virtvault init
write 'write -P 5 0 2M'
step system virtvault backup pull sess --connect qemu:///system
export VIRTVAULT_CONNECT=qemu:///session
step doctor virtvault doctor sess
step full virtvault backup pull sess --no-quiesce --json
write 'write -P 9 1M 64k'
step incremental virtvault backup pull sess --no-quiesce --json
step stop virsh destroy sess
step off virtvault backup pull sess --no-quiesce --json
step undefine virsh undefine sess --checkpoints-metadata
step restore virtvault restore sess@latest --define --to "$T/img/restored"
step same same restored
step begun virsh start sess
step again virtvault backup pull sess --no-quiesce --json
step end virsh destroy sess
find "$T/run" "$T/state" -name 'run-*' >"$T/out/left"
`

/** Runs the story as nobody (root's session is the system's daemon, says libvirt), in namespaces that end with it, and gives what each step said. */
async function tell(t: Test): Promise<ReadonlyMap<string, { code: string; said: string }>> {
  const folder = mkdtempSync(join(roomy(), 'vvsession-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  chmodSync(folder, 0o755)
  for (const name of ['home', 'repo', 'run', 'state']) mkdirSync(join(folder, name))
  chmodSync(join(folder, 'run'), 0o700)
  writeFileSync(join(folder, 'node'), '')
  writeFileSync(join(folder, 'story.sh'), STORY)
  writeFileSync(join(folder, 'domain.xml'), domainXml(join(folder, 'img', 'vda.qcow2')))
  // What lies in a home that is closed to others is bound to where the user may go.
  const script = `
    T=${folder}; export T HOME=$T/home XDG_RUNTIME_DIR=$T/run VIRTVAULT_RUNTIME_DIR=$T/run/v VIRTVAULT_STATE_DIR=$T/state VIRTVAULT_TARGET=$T/store
    mount --bind '${REPOSITORY}' $T/repo && touch $T/node && mount --bind '${process.execPath}' $T/node || exit 1
    chown -R nobody: $T/home $T/run $T/state && chown nobody: $T || exit 1
    cd $T; exec setpriv --reuid=nobody --regid="$(id -g nobody)" --clear-groups bash $T/story.sh`
  const namespaces = ['--mount', '--pid', '--fork', '--kill-child', '--mount-proc']
  const unset = [
    '-u',
    'LIBVIRT_DEFAULT_URI',
    '-u',
    'VIRTVAULT_CONNECT',
    '-u',
    'XDG_CONFIG_HOME',
    '-u',
    'XDG_CACHE_HOME',
  ]
  const { stdout } = await run('env', [...unset, 'unshare', ...namespaces, 'bash', '-c', script])
  const steps = new Map<string, { code: string; said: string }>()
  for (const [, name = '', code = ''] of stdout.matchAll(/^step (\w+) (\d+)$/gm)) {
    steps.set(name, { code, said: (await run('cat', [join(folder, 'out', name)])).stdout })
  }
  steps.set('left', { code: '', said: (await run('cat', [join(folder, 'out', 'left')])).stdout })
  return steps
}

function domainXml(image: string): string {
  return `<domain type='qemu'><name>sess</name><memory unit='MiB'>32</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='${image}'/><target dev='vda' bus='virtio'/></disk>
    <controller type='usb' model='none'/><memballoon model='none'/>
  </devices></domain>`
}

function roomy(): string {
  try {
    const { bavail, bsize } = statfsSync('/dev/shm')
    if (bavail * bsize > 512 * 1024 * 1024) return '/dev/shm'
  } catch {
    // No /dev/shm here.
  }
  return tmpdir()
}

t.test(
  'the session of a user without rights is pulled, running and off, restored and defined, and nothing is left',
  requires('lab', 'setpriv'),
  async t => {
    const steps = await tell(t)

    const failed = [...steps].filter(([name, { code }]) => code !== '0' && name !== 'system' && name !== 'left')
    t.strictSame(failed, [], 'every step works')
    t.match(steps.get('doctor')?.said, /^ok +libvirt +qemu:\/\/\/session on /m)
    t.match(steps.get('full')?.said, /"mode": ?"full"/)
    for (const name of ['incremental', 'off']) t.match(steps.get(name)?.said, /"mode": ?"incremental"/, name)
    t.match(steps.get('same')?.said, /identical/)
    t.equal(steps.get('left')?.said, '')
    t.match(steps.get('system'), { code: /[1-9]/, said: /E_LIBVIRT_(CONNECT|DENIED)[^]*qemu:\/\/\/session/ })
  },
)
