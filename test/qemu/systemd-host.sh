#!/bin/sh
# A host with a systemd of its own, as systemd-host.ts starts it: this shell, the first process of new pid, mount, uts,
# network and cgroup namespaces, becomes systemd. Files are this machine's, what changes stays in memory; of its units there
# are those that any service stands on. The kernel's settings are read-only: nothing of the machine changes.
#
#   systemd-host.sh FOLDER PACKAGE
#     FOLDER   empty: where the memory is mounted
#     PACKAGE  becomes /usr/lib/pageferry
set -eu
PATH=/usr/sbin:/usr/bin:/sbin:/bin
memory=$1 package=$2 root=$1/root
mount --make-rprivate /
ip link set lo up
mount -t tmpfs -o mode=755 tmpfs "$memory"
mkdir "$memory/changed" "$memory/work" "$root"
mount -t overlay -o "lowerdir=/,upperdir=$memory/changed,workdir=$memory/work" overlay "$root"
mkdir -p "$root/usr/lib/pageferry"
mount --bind "$package" "$root/usr/lib/pageferry"
ln -sf ../lib/pageferry/bin/pageferry "$root/usr/bin/pageferry"

mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs sysfs "$root/sys"
mount -o remount,bind,ro "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount --rbind /dev "$root/dev"
: > "$memory/console"
mount --bind "$memory/console" "$root/dev/console"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"

for units in "$root/usr/lib/systemd/system" "$root/lib/systemd/system"; do [ ! -d "$units" ] || break; done
own=$root/etc/systemd/system
rm -rf "$own" "$root"/etc/systemd/*.conf "$root"/etc/systemd/*.conf.d
mkdir -p "$own/sysinit.target.wants" "$own/sockets.target.wants"
for unit in basic local-fs multi-user network-online network nss-lookup paths shutdown slices sockets sysinit timers umount; do
  cp "$units/$unit.target" "$own"
done
for unit in systemd-journald.service systemd-journald.socket systemd-journald-dev-log.socket; do cp "$units/$unit" "$own"; done
ln -s ../systemd-journald.service "$own/sysinit.target.wants"
ln -s ../systemd-journald.socket ../systemd-journald-dev-log.socket "$own/sockets.target.wants"
printf '[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\nRateLimitIntervalSec=0\n' > "$root/etc/systemd/journald.conf"

cd "$root"
mkdir run/old
pivot_root . run/old
cd /
umount -l /run/old
mount --make-rshared / # as systemd finds it anywhere: keys of a service are mounted beside it
exec env -i PATH="$PATH" container=pageferry SYSTEMD_UNIT_PATH=/etc/systemd/system SYSTEMD_GENERATOR_PATH=/nonexistent \
  /lib/systemd/systemd --system --unit=multi-user.target --log-target=journal --show-status=no \
  < /dev/null > /dev/console 2>&1
