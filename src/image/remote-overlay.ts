import { type OverlaySpec, overlayArguments } from './overlay.js'
import { failureOf, type RemoteMachine, TAKEN } from './remote-machine.js'

/** `$1` the overlay, `$2` its owner or nothing, then the arguments of qemu-img. */
const CREATE = `
path=$1 owner=$2; shift 2
if [ -e "$path" ] || [ -L "$path" ]; then exit ${TAKEN}; fi
umask 077; set -C; : >"$path" || exit 1; set +C
qemu-img "$@" >&2 && { [ -z "$owner" ] || chown "$owner" -- "$path"; } || { code=$?; rm -f -- "$path"; exit $code; }`

const INFO = 'exec qemu-img info -U --output=json -- "$1"'

const INFO_IF_THERE = `[ -e "$1" ] || exit 0; ${INFO}`

/** As createOverlay(), on the machine of a hypervisor. Rejects with E_EXISTS, E_TOOL_MISSING, E_IO, E_UNREACHABLE. */
export async function createRemoteOverlay(machine: RemoteMachine, spec: OverlaySpec): Promise<void> {
  const owner = spec.owner === undefined ? '' : `${spec.owner.uid}:${spec.owner.gid}`
  const answer = await machine.run(CREATE, [spec.path, owner, ...overlayArguments(spec)])
  if (answer.code !== 0) throw failureOf(machine.host, spec.path, answer)
}

/** As isOverlay(). Rejects with E_IO, E_UNREACHABLE. */
export async function isRemoteOverlay(machine: RemoteMachine, path: string): Promise<boolean> {
  return (await say(machine, INFO, path)).includes('"backing-filename"')
}

/** As isOverlayOn(). Rejects with E_IO, E_UNREACHABLE. */
export async function isRemoteOverlayOn(machine: RemoteMachine, path: string, socket: string): Promise<boolean> {
  return (await say(machine, INFO_IF_THERE, path)).includes(socket)
}

async function say(machine: RemoteMachine, script: string, path: string): Promise<string> {
  const answer = await machine.run(script, [path])
  if (answer.code !== 0) throw failureOf(machine.host, path, answer)
  return answer.stdout
}
