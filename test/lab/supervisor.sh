#!/usr/bin/env bash
# One lab: a private libvirtd and its QEMUs, in namespaces of their own.
#
#   bash supervisor.sh LAB CAPABILITIES
#
# LAB is an empty directory; it is removed at the end. CAPABILITIES is a
# directory that keeps what libvirt learnt about QEMU, which takes seconds.
# Takes one command per line on stdin, `ID WORD ARGUMENT...`, and answers each
# with a line `ID STATUS` on stdout:
#
#   start              starts libvirtd
#   stop SIGNAL        sends SIGNAL to libvirtd and waits for its end
#   daemon SIGNAL      sends SIGNAL to libvirtd, which may well live on
#   signal PID SIGNAL  to a process of this lab, PID as its pid file has it
#   save               keeps what libvirt learnt for later labs
#
#   inside SCRIPT      runs it with bash in the namespaces of this lab
#
# With VVLAB_NET="NAME HERE THERE" the lab is another machine on the network: in a
# network namespace NAME with the address THERE, this machine being HERE (/30),
# and with directories of its own where virtvault's runs have their places.
#
# End of stdin ends the lab, so it cannot outlive the process that started it,
# however that one dies: the first process of a PID namespace takes all others
# with it, and a mount namespace its mounts.
set -u

if [ "${1:-}" != --inside ]; then
  lab=$1
  trap '' INT TERM HUP
  # Whoever finds this lock free finds a lab whose machine went down with it.
  exec 8>"$lab/alive"
  flock 8
  find "$(dirname "$lab")" -maxdepth 1 -name 'vvlab-*' -mmin +2 -print0 2>/dev/null | while IFS= read -r -d '' other; do
    [ -f "$other/alive" ] && flock --nonblock "$other/alive" rm -rf "$other"
  done 8>&-
  enter=()
  if [ -n "${VVLAB_NET:-}" ]; then
    read -r net here there <<<"$VVLAB_NET"
    ip netns add "$net" && ip link add "$net" type veth peer name eth0 netns "$net" &&
      ip addr add "$here/30" dev "$net" && ip link set "$net" up && ip -n "$net" link set lo up &&
      ip -n "$net" addr add "$there/30" dev eth0 && ip -n "$net" link set eth0 up || exit 1
    enter=(ip netns exec "$net")
  fi
  "${enter[@]}" unshare --mount --pid --fork --kill-child --mount-proc bash "$0" --inside "$@"
  status=$?
  [ -z "${VVLAB_NET:-}" ] || ip netns del "$net"
  rm -rf "$lab"
  exit $status
fi

set -e
lab=$2
capabilities=$3
mkdir -p "$lab"/{etc,lib,log,cache/qemu/capabilities,run}
for pair in etc:/etc/libvirt lib:/var/lib/libvirt log:/var/log/libvirt cache:/var/cache/libvirt run:/run/libvirt; do
  mkdir -p "${pair#*:}"
  mount --bind "$lab/${pair%%:*}" "${pair#*:}"
done

# libvirtd insists on these users even where everything runs as root.
cp /etc/passwd "$lab/etc/passwd"
cp /etc/group "$lab/etc/group"
grep -q '^libvirt-qemu:' "$lab/etc/passwd" ||
  echo 'libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin' >>"$lab/etc/passwd"
for entry in libvirt-qemu:64055 kvm:64056 libvirt:64057; do
  grep -q "^${entry%%:*}:" "$lab/etc/group" || echo "${entry%%:*}:x:${entry#*:}:" >>"$lab/etc/group"
done
mount --bind "$lab/etc/passwd" /etc/passwd
mount --bind "$lab/etc/group" /etc/group

listen=
if [ -n "${VVLAB_NET:-}" ]; then
  mkdir -p /run/virtvault /var/lib/virtvault /run/sshd "$lab"/{backup-pki,sshd} "$lab/lib/images"
  mount -t tmpfs none /run/virtvault
  mount -t tmpfs none /var/lib/virtvault
  listen=--listen
  # Where libvirtd finds how users log in.
  export SASL_CONF_PATH=$lab/sasl
fi

cat >/etc/libvirt/qemu.conf <<'CONF'
user = "root"
group = "root"
security_driver = "none"
dynamic_ownership = 0
remember_owner = 0
# A file system mounted after a domain's start must be seen by it.
namespaces = []
cgroup_controllers = []
# Without virtlogd.
stdio_handler = "file"
CONF
cat >/etc/libvirt/libvirtd.conf <<'CONF'
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "2:file:/var/log/libvirt/libvirtd.log"
CONF
if [ -n "$listen" ]; then
  echo "backup_tls_x509_cert_dir = \"$lab/backup-pki\"" >>/etc/libvirt/qemu.conf
  cat "$lab/listen.conf" >>/etc/libvirt/libvirtd.conf
fi
cp -p "$capabilities"/*.xml "$lab/cache/qemu/capabilities/" 2>/dev/null || :
set +e

daemon=

start() {
  rm -f "$lab"/run/libvirt-sock "$lab"/run/libvirt-sock-ro "$lab"/run/libvirt-admin-sock
  libvirtd $listen --pid-file "$lab/run/libvirtd.pid" </dev/null >>"$lab/log/libvirtd.out" 2>&1 8>&- &
  daemon=$!
}

stop() {
  local impatience
  kill -s "$1" "$daemon" || return
  # A libvirtd that lost a backup job does not end by SIGTERM.
  (sleep 20 && kill -s KILL "$daemon") 2>/dev/null &
  impatience=$!
  wait "$daemon" 2>/dev/null
  kill "$impatience"
  daemon=
}

# Another lab may do the same at this moment: rename, so that nobody reads half a file.
save() {
  local learnt kept
  for learnt in "$lab"/cache/qemu/capabilities/*.xml; do
    kept=$capabilities/${learnt##*/}
    if [ -f "$learnt" ] && ! cmp -s "$learnt" "$kept"; then
      cp -p "$learnt" "$kept.$$.${lab##*/}" && mv "$kept.$$.${lab##*/}" "$kept"
    fi
  done
}

while read -r id word first second; do
  case $word in
    start) start ;;
    stop) stop "$first" ;;
    daemon) kill -s "$first" "$daemon" ;;
    signal) kill -s "$second" "$first" ;;
    save) save ;;
    inside) bash "$first" </dev/null >>"$lab/log/inside.out" 2>&1 8>&- ;;
    *) false ;;
  esac
  echo "$id $?"
done
