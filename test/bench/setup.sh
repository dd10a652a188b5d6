#!/usr/bin/env bash
# Installs what only the benchmarks need: the tools that we measure ourselves against.
set -euo pipefail

bash "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"

packages=(virtnbdbackup restic borgbackup)
missing=()
for name in "${packages[@]}"; do
  dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null | grep -qx installed || missing+=("$name")
done
[ ${#missing[@]} -gt 0 ] || exit 0
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)
printf 'setup: installing %s\n' "${missing[*]}" >&2
"${as_root[@]}" flock /var/lib/apt/lists env DEBIAN_FRONTEND=noninteractive sh -c '
  apt-get -q update && apt-get -q -y -o DPkg::Lock::Timeout=600 install --no-install-recommends "$@"' sh "${missing[@]}" \
  </dev/null >&2
