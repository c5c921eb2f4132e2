#!/bin/sh
# Makes the test guest in .cache/guest: vmlinuz (the distribution's own cloud kernel) and initramfs.gz (busybox and
# ./init). Does nothing when both are there and newer than their sources. Prints the folder. Takes whatever mirror this
# system's apt uses. Missing tools are installed when root runs this, and named otherwise.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
guest=$here/../../../.cache/guest
if [ -f "$guest/vmlinuz" ] && [ "$guest/initramfs.gz" -nt "$here/init" ] && [ "$guest/initramfs.gz" -nt "$0" ]; then
  cd "$guest" && pwd -P
  exit 0
fi
mkdir -p "$guest"
guest=$(cd "$guest" && pwd -P)
exec 9> "$guest/.lock"
command -v flock > /dev/null && flock 9 # two callers at once: the second waits and finds the work done

fail() {
  echo "error: $1" >&2
  echo "hint: $2" >&2
  exit 1
}
command -v apt-get > /dev/null || fail 'the test guest is made from Debian packages, and this system has no apt-get' \
  'put a kernel as .cache/guest/vmlinuz and an initramfs as .cache/guest/initramfs.gz yourself'
missing=
command -v qemu-system-x86_64 > /dev/null || missing="$missing qemu-system-x86"
command -v cpio > /dev/null || missing="$missing cpio"
command -v ip > /dev/null || missing="$missing iproute2"
command -v vde_plug > /dev/null || missing="$missing vde2" # for scripts/wan
busybox=
for path in /bin/busybox /usr/bin/busybox; do
  # A program that names no interpreter needs no libraries: that is busybox-static, not busybox.
  [ -x $path ] && ! grep -q ld-linux $path && busybox=$path && break
done
[ "$busybox" ] || missing="$missing busybox-static"

updated=
refresh() {
  [ "$updated" ] || apt-get -qq update >&2 || fail 'apt-get update failed' 'look at the lines above'
  updated=yes
}
if [ "$missing" ]; then
  [ "$(id -u)" = 0 ] || fail "packages are missing:$missing" "as root: apt-get install --no-install-recommends$missing"
  export DEBIAN_FRONTEND=noninteractive
  # shellcheck disable=SC2086
  apt-get -qq install -y --no-install-recommends $missing > "$guest/apt.log" 2>&1 || {
    refresh
    apt-get -qq install -y --no-install-recommends $missing > "$guest/apt.log" 2>&1 ||
      fail "cannot install:$missing" "see $guest/apt.log"
  }
  [ "$busybox" ] || busybox=$(command -v busybox)
fi

work=$(mktemp -d "$guest/work.XXXXXX")
trap 'rm -rf "$work"' EXIT INT TERM
if [ ! -f "$guest/vmlinuz" ]; then
  # The metapackage's first dependency is the kernel's real package.
  kernel() {
    apt-cache depends --important linux-image-cloud-amd64 2> /dev/null | awk '/Depends: linux-image/ { print $2; exit }'
  }
  package=$(kernel)
  [ "$package" ] || { refresh; package=$(kernel); }
  [ "$package" ] || fail 'apt knows no linux-image-cloud-amd64' 'the test guest needs Debian 12 or newer on amd64'
  fetch() (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "$package" > "$guest/apt.log" 2>&1)
  fetch || { refresh; fetch; } || fail "cannot download $package" "see $guest/apt.log"
  dpkg-deb --fsys-tarfile "$work"/linux-image-*.deb | tar -x -C "$work" --wildcards './boot/vmlinuz-*'
  mv "$work"/boot/vmlinuz-* "$guest/vmlinuz"
fi
mkdir -p "$work/root/bin" "$work/root/dev"
cp "$busybox" "$work/root/bin/busybox"
cp "$here/init" "$work/root/init"
# Noise that every guest's init permutes by its seed. The generator is busybox's own, so the bytes do not depend on this
# system's awk.
"$busybox" awk 'BEGIN {
  srand(1)
  digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
  for (line = 0; line < 1366; line++) {
    s = ""
    for (i = 0; i < 64; i++) s = s substr(digits, 1 + int(rand() * 64), 1)
    print s
  }
}' | "$busybox" base64 -d | head -c 65536 > "$work/root/noise"
ln -s busybox "$work/root/bin/sh"
chmod 755 "$work/root/init" "$work/root/bin/busybox"
# Fixed times, owners and order: the same busybox and init give the same initramfs, byte for byte.
find "$work/root" -exec touch -h -d @0 {} +
(cd "$work/root" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --reproducible --quiet) |
  gzip -n -1 > "$work/initramfs.gz"
# States of earlier guests, saved by scripts/harness/qemu/guest.ts, are of no use to other ones.
cmp -s "$work/initramfs.gz" "$guest/initramfs.gz" || rm -f "$guest"/state-*
mv "$work/initramfs.gz" "$guest/initramfs.gz"
touch "$guest/initramfs.gz"
echo "$guest"
