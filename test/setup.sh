#!/usr/bin/env bash
# Makes this clone ready to run: what `npm test` and `npm run demo` call first.
# Installs what is missing and says why; does nothing, quickly, when nothing is.
# Needs Node 20 or newer, npm and apt. Two at once are safe: they take turns.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$root"

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
  printf 'setup: error: %s\n' "$*" >&2
  exit 1
}

# package: what it is for
packages=(
  "build-essential:compiles the addon"
  "python3:runs node-gyp"
  "pkg-config:finds the libraries of the addon"
  "libvirt-dev:libvirt client library, for the addon"
  "libnbd-dev:NBD client library, for the addon"
  "libzstd-dev:compression, for the addon"
  "libssl-dev:hash and encryption, for the addon"
  "libvirt-daemon:libvirtd of the test lab"
  "libvirt-daemon-driver-qemu:QEMU driver of that libvirtd"
  "libvirt-clients:virsh, how the tests drive the lab"
  "qemu-system-x86:the domains of the lab"
  "ovmf:UEFI firmware, whose variables belong into a recovery point"
  "swtpm:emulated TPMs, whose state belongs into a recovery point"
  "swtpm-tools:how libvirt makes one"
  "qemu-utils:qemu-img, qemu-io and qemu-nbd, which judge restored images"
  "libnbd-bin:nbdcopy and nbdinfo, which judge NBD reads"
  "nbdkit:NBD servers that fail on demand"
  "openssh-server:the way to a libvirt on another machine"
  "netcat-openbsd:carries libvirt and NBD over ssh"
  "iproute2:the network to that machine"
  "openssl:its certificates"
  "tgt:an iSCSI target in user space"
  "qemu-block-extra:QEMU's iSCSI"
  "sasl2-bin:users and passphrases of that libvirt"
  "libsasl2-modules:how they log in"
  "acl:rights for a user of it who is not root"
  "e2fsprogs:file systems of the test guest"
  "btrfs-progs:a file system whose quotas statfs does not see"
  "zstd:judges compressed records"
  "fuse2fs:reads ext file systems of guests"
  "fuse3:lets ordinary users mount"
  "ntfs-3g:reads NTFS of guests"
  "fdisk:partitions test disks"
)

command -v node >/dev/null || die 'node is missing: install Node.js 20 or newer'
command -v npm >/dev/null || die 'npm is missing: install it with Node.js 20 or newer'
major=$(node -p 'process.versions.node.split(".")[0]')
[ "$major" -ge 20 ] || die "node is $(node --version): version 20 or newer is needed"

# One set-up at a time in this clone, whoever calls it. The lock is on the
# directory itself, so nothing is left behind and nothing can be stale.
exec 9<"$root"
flock -n 9 || {
  say 'another set-up of this clone is running: waiting for it'
  flock 9
}

install_packages() {
  command -v dpkg-query >/dev/null || die 'this is no Debian system: install the packages of test/setup.sh by hand'
  local installed missing=() entry
  installed=$'\n'$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' 2>/dev/null || true)$'\n'
  for entry in "${packages[@]}"; do
    [[ $installed == *$'\n'"installed ${entry%%:*}"$'\n'* ]] || missing+=("$entry")
  done
  [ ${#missing[@]} -gt 0 ] || return 0

  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "these Debian packages are missing and neither root nor sudo is at hand: ${missing[*]%%:*}"
    as_root=(sudo)
  fi
  say 'installing Debian packages:'
  for entry in "${missing[@]}"; do say "  ${entry%%:*} (${entry#*:})"; done
  local log
  log=$(mktemp)
  # The second lock is for other clones: apt waits for dpkg, not for its lists.
  # Nothing is started that was not there: the tests run servers of their own.
  # shellcheck disable=SC2016
  if ! "${as_root[@]}" flock /var/lib/apt/lists env DEBIAN_FRONTEND=noninteractive sh -c '
      policy=/usr/sbin/policy-rc.d
      if [ ! -e "$policy" ]; then
        trap "rm -f $policy" EXIT
        trap "exit 1" HUP INT TERM
        printf "#!/bin/sh\nexit 101\n" >"$policy" && chmod 755 "$policy" || exit 1
      fi
      apt-get -q update &&
      apt-get -q -y -o DPkg::Lock::Timeout=600 -o Dpkg::Options::=--force-confold \
        install --no-install-recommends "$@"' sh "${missing[@]%%:*}" </dev/null >"$log" 2>&1; then
    tail -n 40 "$log" >&2
    rm -f "$log"
    die 'apt-get failed, see above'
  fi
  # Debian enables what it installs; nobody asked for logins from outside.
  if [[ " ${missing[*]%%:*} " == *' openssh-server '* ]] && command -v systemctl >/dev/null; then
    "${as_root[@]}" systemctl disable ssh.service ssh.socket >/dev/null 2>&1 || true
    say 'openssh-server was installed for the tests and not enabled: systemctl enable --now ssh'
  fi
  rm -f "$log"
}

install_modules() {
  # npm ci starts by emptying node_modules, so the copy says which lock file is really installed.
  ! cmp -s package-lock.json node_modules/.lock-copy || return 0
  say 'installing node modules: npm ci (node_modules does not match package-lock.json)'
  npm ci --ignore-scripts --no-audit --no-fund --loglevel=error </dev/null >&2
  cp package-lock.json node_modules/.lock-copy
}

build_addon() {
  local sum stamp=build/.setup-stamp
  sum=$({
    node -p 'process.versions.modules + process.arch'
    find native binding.gyp node_modules/node-addon-api/package.json -type f -print0 | sort -z | xargs -0 sha256sum
  } | sha256sum)
  if [ -f build/Release/virtvault.node ] && [ "$(cat $stamp 2>/dev/null)" = "$sum" ]; then return 0; fi
  say 'building the addon: npm run build:native'
  # Where Node brought its headers, node-gyp need not download them.
  local prefix
  prefix=$(dirname "$(dirname "$(readlink -f "$(command -v node)")")")
  if [ -f "$prefix/include/node/node_api.h" ]; then export npm_config_nodedir=$prefix; fi
  rm -f $stamp
  local log
  log=$(mktemp)
  if ! npm run -s build:native </dev/null >"$log" 2>&1; then
    cat "$log" >&2
    rm -f "$log"
    die 'the addon does not build, see above'
  fi
  rm -f "$log"
  printf '%s\n' "$sum" >$stamp
}

build_typescript() {
  # Tests of deleted or renamed sources must not run from an old dist/.
  local sum stamp=dist/.setup-stamp
  sum=$(find src test tsconfig.json package.json -type f \( -name '*.ts' -o -name '*.json' \) -print0 | sort -z |
    xargs -0 sha256sum | sha256sum)
  [ "$(cat $stamp 2>/dev/null)" != "$sum" ] || return 0
  say 'compiling TypeScript: tsc'
  [ ! -d dist ] || find dist -name '*.js' -print0 | while IFS= read -r -d '' built; do
    source=${built#dist/}
    [ -f "${source%.js}.ts" ] || rm -f "$built" "$built.map"
  done
  rm -f $stamp
  npm run -s build:ts </dev/null >&2
  printf '%s\n' "$sum" >$stamp
}

build_guest() {
  bash test/lab/build-guest.sh "${XDG_CACHE_HOME:-$HOME/.cache}/virtvault-lab/guest" </dev/null
}

install_packages
install_modules
build_addon
build_typescript
build_guest
