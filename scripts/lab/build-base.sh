#!/usr/bin/env bash
# Builds the one disk that every guest of the lab starts from: Debian 12 from the distribution's packages, two kernel builds
# and the data of every workload, so that guests do not spend emulated time on making it.
#
#   scripts/lab/build-base.sh OUT      as root; about four minutes, 1.5 GB
#
# Leaves OUT/disk.raw (ext4, no partition table), OUT/k1 and OUT/k2 (vmlinuz, initrd.img, version) and OUT/packages.txt.
# OUT appears when all of it is done, so an interrupted build never looks like a finished one.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd -P)
fail() { echo "error: $1" >&2; [ -z "${2-}" ] || echo "hint: $2" >&2; exit 1; }
step() { echo "base: $*"; }

[ $# = 1 ] || fail 'one folder is needed' "usage: ${0##*/} OUT"
[ "$(id -u)" = 0 ] || fail 'root is needed' 'debootstrap and chroot do not work without it'
# In mount and process namespaces of its own nothing is left behind: the mounts and whatever still runs inside end with it.
if [ "${PAGEFERRY_LAB_INSIDE-}" != 1 ]; then
  PAGEFERRY_LAB_INSIDE=1 exec unshare --mount --pid --fork --kill-child "$0" "$@"
fi

suite=bookworm
disk_gb=4
out=$1
work=$out.work
root=$work/root
log=$work/build.log
rm -rf "$work"
mkdir -p "$work" "${out%/*}/debs"
debs=$(cd "${out%/*}/debs" && pwd -P)
root=$(cd "$work" && pwd -P)/root
trap '[ $? = 0 ] || { echo "error: the base image failed; the last lines of its log:" >&2; tail -n 20 "$log" >&2; }' EXIT
: > "$log"

# shellcheck disable=SC2016 # $(REPO_URI) is for apt, not for the shell
mirror_of() { apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $1" | sed -n 1p; }
mirror=$(mirror_of $suite)
security=$(mirror_of $suite-security)
[ -n "$mirror" ] || fail "this machine's apt knows no mirror of $suite" "the lab builds on Debian 12; run apt-get update"

inside() {
  env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
    chroot "$root" "$@" >> "$log" 2>&1
}

step "debootstrap of $suite"
debootstrap --variant=minbase --cache-dir="$debs" $suite "$root" "$mirror" >> "$log" 2>&1
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/dev/shm" 2>> "$log" || { mkdir -p "$root/dev/shm" && mount -t tmpfs tmpfs "$root/dev/shm"; }

# The chroot fetches through the host's apt settings (a proxy, say) and name resolution.
{
  echo "deb $mirror $suite main"
  [ -z "$security" ] || echo "deb $security $suite-security main"
  echo "deb-src $mirror $suite main"
} > "$root/etc/apt/sources.list"
apt-config dump Acquire::http | grep -i proxy > "$root/etc/apt/apt.conf.d/00host" || true
cp /etc/resolv.conf "$root/etc/resolv.conf"
cp /etc/hosts "$root/etc/hosts"
printf 'force-unsafe-io\n' > "$root/etc/dpkg/dpkg.cfg.d/lab"
printf 'path-exclude=/usr/share/man/*\npath-exclude=/usr/share/locale/*\n' >> "$root/etc/dpkg/dpkg.cfg.d/lab"
printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d" # no service starts inside the chroot
chmod +x "$root/usr/sbin/policy-rc.d"
mkdir -p "$root/etc/initramfs-tools/conf.d"
printf 'MODULES=list\nRESUME=none\n' > "$root/etc/initramfs-tools/conf.d/lab"
printf 'virtio_pci\nvirtio_blk\next4\n' > "$root/etc/initramfs-tools/modules"

step 'packages: system and workloads'
inside apt-get -q -y update
inside apt-get -q -y install --no-install-recommends \
  systemd-sysv udev dbus kmod iproute2 cron openssh-server ca-certificates \
  nginx-light wrk redis-server redis-tools postgresql gcc libc6-dev make bzip2 python3 initramfs-tools

# Two kernel builds of one flavour: the newest that apt offers, and the oldest (the security and the main suite's, as a rule).
# Where there is one alone, the other is the full flavour of the same version.
step 'packages: kernels'
versions=$(chroot "$root" apt-cache madison linux-image-cloud-amd64 | awk '$NF == "Packages" { print $3 }' | sort -uV)
image_of() {
  chroot "$root" apt-cache show "$1" | sed -n 's/^Depends: .*\(linux-image-[0-9][^ ,]*\).*/\1/p' | sed -n 1p
}
first=$(image_of "linux-image-cloud-amd64=$(tail -n 1 <<< "$versions")")
second=$(image_of "linux-image-cloud-amd64=$(head -n 1 <<< "$versions")")
[ "$first" != "$second" ] || second=$(image_of linux-image-amd64)
inside apt-get -q -y install --no-install-recommends "$first" "$second"

step 'guest files and data'
cp -r "$here/guest/." "$root/"
chmod +x "$root"/opt/lab/*
: > "$root/etc/machine-id" # each guest makes its own at boot
echo guest > "$root/etc/hostname"
printf '/dev/vda / ext4 noatime 0 0\n' > "$root/etc/fstab"
inside systemctl disable nginx.service redis-server.service postgresql.service
inside systemctl enable lab.service
# What would wake up by itself in the middle of a capture, or make the boot wait.
inside systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
  fstrim.timer serial-getty@ttyS0.service systemd-networkd-wait-online.service

inside python3 /opt/lab/make-data.py
inside sh -c 'cd /srv && apt-get -q source --download-only busybox && mkdir busybox &&
  tar -xf busybox_*.orig.tar.* -C busybox --strip-components=1 && rm busybox_* && cd busybox && make defconfig &&
  sed -i "s/^CONFIG_TC=y/# CONFIG_TC is not set/" .config && make oldconfig < /dev/null'
inside sh -c 'redis-server --port 0 --unixsocket /tmp/redis.sock --dir /var/lib/redis --save "" --daemonize yes &&
  sleep 1 && redis-cli -s /tmp/redis.sock --pipe < /srv/redis.resp && redis-cli -s /tmp/redis.sock save &&
  redis-cli -s /tmp/redis.sock shutdown nosave; chown redis:redis /var/lib/redis/dump.rdb && rm /srv/redis.resp'
inside sh -c 'pg_ctlcluster --skip-systemctl-redirect 15 main start -o "-c listen_addresses= -c fsync=off" &&
  su postgres -c "createdb bench && pgbench -q -i -s 12 bench" && pg_ctlcluster --skip-systemctl-redirect 15 main stop'

step 'disk'
inside apt-get clean
printf '127.0.0.1 localhost guest\n' > "$root/etc/hosts"
printf 'nameserver 127.0.0.1\n' > "$root/etc/resolv.conf"
rm -rf "$root"/usr/sbin/policy-rc.d "$root"/etc/apt/apt.conf.d/00host "$root"/var/lib/apt/lists "$root"/tmp/*
mkdir -p "$root/var/lib/apt/lists/partial"
chroot "$root" dpkg-query -W > "$work/packages.txt"
number=0
for image in "$first" "$second"; do
  number=$((number + 1))
  release=${image#linux-image-}
  mkdir "$work/k$number"
  cp "$root/boot/vmlinuz-$release" "$work/k$number/vmlinuz"
  cp "$root/boot/initrd.img-$release" "$work/k$number/initrd.img"
  echo "$release $(chroot "$root" dpkg-query -W -f '${Version}' "$image")" > "$work/k$number/version"
done
umount "$root/dev/shm" "$root/proc"
truncate -s ${disk_gb}G "$work/disk.raw"
mke2fs -q -t ext4 -L lab -E lazy_itable_init=0,lazy_journal_init=0 -d "$root" "$work/disk.raw" >> "$log" 2>&1
rm -rf "$root" "$out"
mv "$work" "$out"
step "done: $(du -sm "$out/disk.raw" | cut -f1) MB, kernels $(cut -d' ' -f1 "$out/k1/version") and $(cut -d' ' -f1 "$out/k2/version")"
