#!/usr/bin/env bash
# Builds the Linux guest of the test lab: a Debian cloud kernel, and an initramfs
# of busybox and qemu-ga. Nothing is installed; packages are only unpacked.
#
#   bash build-guest.sh FOLDER       leaves FOLDER/kernel and FOLDER/initrd
#
# Quick where FOLDER holds what this script builds; two at once take turns.
set -euo pipefail
export LC_ALL=C

mkdir -p "$1"
folder=$(cd "$1" && pwd -P)
exec 9>"$folder/.lock"
flock 9
# Another script or another qemu-ga (its libraries come from this machine) makes another guest.
stamp="$(sha256sum <"$0") $(cat /etc/debian_version)"
if [ -f "$folder/kernel" ] && [ -f "$folder/initrd" ] && [ "$(cat "$folder/.stamp" 2>/dev/null)" = "$stamp" ]; then exit 0; fi
echo 'lab: building the Linux guest (kernel, busybox and qemu-ga from Debian packages)' >&2

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

kernel_package() {
  apt-cache show --no-all-versions linux-image-cloud-amd64 2>/dev/null |
    sed -n 's/^Depends: .*\(linux-image-[0-9][^ ,]*\).*/\1/p'
}
download() {
  local kernel
  kernel=$(kernel_package)
  [ -n "$kernel" ] && apt-get -q download busybox-static qemu-guest-agent "$kernel" >apt.log 2>&1
}
# Package lists that are missing or old are the usual reason for a failure.
download || {
  apt-get -q update >apt.log 2>&1 && download
} || {
  cat apt.log >&2
  echo 'lab: cannot download the packages of the Linux guest' >&2
  exit 1
}
for package in *.deb; do dpkg-deb -x "$package" unpacked; done

root=$work/root
mkdir -p "$root"/{bin,sbin,dev,proc,sys,run,tmp,etc,mnt,modules,usr/sbin,usr/bin,var/run}
cp unpacked/bin/busybox "$root/bin/busybox"
cp unpacked/usr/sbin/qemu-ga "$root/usr/sbin/qemu-ga"
ldd unpacked/usr/sbin/qemu-ga | grep -o '/[^ ]*' | sort -u | while read -r library; do
  mkdir -p "$root$(dirname "$library")"
  cp -L "$library" "$root$library"
done
for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk virtio_console; do
  find unpacked/lib/modules -name "$module.ko" -exec cp {} "$root/modules/" \;
done
ln -s /proc/mounts "$root/etc/mtab"
echo 'root:x:0:0:root:/:/bin/sh' >"$root/etc/passwd"

cat >"$root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mkdir -p /dev /proc /sys /run /tmp
/bin/busybox --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk virtio_console; do
  [ ! -f /modules/$module.ko ] || insmod /modules/$module.ko
done
mkdir -p /dev/virtio-ports
for port in /sys/class/virtio-ports/*; do
  name=$(cat $port/name 2>/dev/null)
  [ -z "$name" ] || ln -sf /dev/${port##*/} "/dev/virtio-ports/$name"
done
# Every disk with an ext4 file system is mounted at /mnt/TARGET.
for disk in /dev/vd?; do
  mkdir -p /mnt/${disk##*/}
  mount -t ext4 $disk /mnt/${disk##*/} 2>/dev/null || rmdir /mnt/${disk##*/}
done
echo "guest: ready, mounted:$(grep -o ' /mnt/[^ ]*' /proc/mounts | tr '\n' ' ')"
while :; do qemu-ga -m virtio-serial -p /dev/virtio-ports/org.qemu.guest_agent.0 -t /run -l /dev/ttyS0; sleep 1; done
INIT
cat >"$root/sbin/shutdown" <<'SHUTDOWN'
#!/bin/busybox sh
sync
umount -a 2>/dev/null
case " $* " in *' -r '*) reboot -f ;; *) poweroff -f ;; esac
SHUTDOWN
chmod 755 "$root/init" "$root/sbin/shutdown" "$root/bin/busybox"

# Not compressed: unpacking costs an emulated processor more than reading.
(cd "$root" && find . -print0 | "$root/bin/busybox" cpio -0 -o -H newc 2>/dev/null) >initrd
cp unpacked/boot/vmlinuz-* "$folder/kernel"
cp initrd "$folder/initrd"
printf '%s' "$stamp" >"$folder/.stamp"
