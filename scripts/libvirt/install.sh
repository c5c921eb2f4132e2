#!/bin/sh
# Sees that libvirt's daemon and virsh are here: as root by apt-get where they are missing, and only those packages that
# start nothing by themselves. Otherwise says in one line why they are not to be had, with status 1.
set -eu
PATH=$PATH:/usr/sbin
missing=
command -v libvirtd > /dev/null || missing="$missing libvirt-daemon"
ls /usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so > /dev/null 2>&1 || missing="$missing libvirt-daemon-driver-qemu"
command -v virsh > /dev/null || missing="$missing libvirt-clients"
[ "$missing" ] || exit 0

fail() {
  echo "$1" >&2
  exit 1
}
packages="apt-get install --no-install-recommends$missing"
[ "$(id -u)" = 0 ] || fail "libvirt is missing; as root: $packages"
command -v apt-get > /dev/null || fail "libvirt is missing:$missing, in Debian's names"
export DEBIAN_FRONTEND=noninteractive
echo "installing$missing" >&2
# shellcheck disable=SC2086
apt-get -qq install -y --no-install-recommends $missing > /dev/null 2>&1 ||
  { apt-get -qq update && apt-get -qq install -y --no-install-recommends $missing; } > /dev/null 2>&1 ||
  fail "libvirt cannot be installed: $packages fails"
