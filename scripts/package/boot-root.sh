#!/bin/sh
# Boots a root, which is mounted already, in namespaces of its own: boot-root.sh ROOT PIDFILE. Ends when it is killed, and
# systemd with it. PIDFILE gets the process id of its systemd, as this namespace counts,
# PIDFILE.cgroup the folder of its cgroup, which whoever kills it removes.
set -eu
host=$1 pidfile=$2
unified=/sys/fs/cgroup/unified
[ -d "$unified" ] || unified=/sys/fs/cgroup
group=$(mktemp -d "$unified/pageferry-deb.XXXXXX")
echo "$group" > "$pidfile.cgroup"
# shellcheck disable=SC2016 # for the shells within
exec unshare --fork --kill-child sh -c '
  echo $$ > "$3/cgroup.procs"
  unshare --mount --uts --pid --net --cgroup --fork --kill-child sh -euc '\''
    host=$1
    mount --make-rprivate /
    ip link set lo up
    umount -l "$host/proc"
    mount -t proc proc "$host/proc"
    mount --bind "$host/proc/sys" "$host/proc/sys"
    mount -o remount,bind,ro "$host/proc/sys"
    mount -t sysfs sysfs "$host/sys"
    mount -o remount,bind,ro "$host/sys"
    mount -t cgroup2 cgroup2 "$host/sys/fs/cgroup"
    mkdir -p "$host/run/old"
    cd "$host"
    pivot_root . run/old
    cd /
    umount -l /run/old
    mount --make-rshared /
    exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=pageferry /lib/systemd/systemd --system \
      --unit=multi-user.target --log-target=journal --show-status=no < /dev/null > /dev/null 2>&1
  '\'' sh "$1" &
  until init=$(cat "/proc/$!/task/$!/children" 2> /dev/null) && [ -n "$init" ]; do sleep 0.1; done
  echo "${init%% *}" > "$2"
  wait
' sh "$host" "$pidfile" "$group"
