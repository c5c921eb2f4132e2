#!/bin/sh
# One libvirt host, as host.ts starts it: libvirtd with configuration and state in memory, of its own. Runs as the first
# process of new pid, mount and uts namespaces, so that all of it ends with this shell.
#
#   host.sh NAME UUID ADDRESS QEMU_CONF [FOLDER_TO_HIDE]
#     ADDRESS    where libvirtd takes connections, without asking who comes: only for a network that nobody else reaches
#     QEMU_CONF  lines for libvirt's qemu.conf
set -eu
name=$1 uuid=$2 address=$3 qemu_conf=$4 hide=${5-}
PATH=$PATH:/usr/sbin:/sbin
mount --make-rprivate /
for folder in /run /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt; do
  [ -d "$folder" ] || mkdir -p "$folder"
  mount -t tmpfs tmpfs "$folder"
done
[ ! -d "$hide" ] || mount -t tmpfs tmpfs "$hide"
hostname "$name"
mkdir /run/pageferry /run/memory /run/images
# Debian's libvirtd wants this user and group, which its package without services does not make.
for file in passwd group; do
  grep -q ^libvirt-qemu: /etc/$file && continue
  [ $file = passwd ] && entry=libvirt-qemu:x:64055:64055::/nonexistent:/bin/false || entry=libvirt-qemu:x:64055:
  { cat /etc/$file; echo $entry; } > /run/$file
  mount --bind /run/$file /etc/$file
done
cat > /etc/libvirt/libvirtd.conf << EOF
listen_tls = 0
listen_tcp = 1
listen_addr = "$address"
auth_tcp = "none"
auth_unix_rw = "none"
host_uuid = "$uuid"
log_outputs = "4:file:/var/log/libvirt/libvirtd.log"
EOF
# Nothing of this machine that two libvirts would share: no cgroups, no security labels, no log daemon.
cat > /etc/libvirt/qemu.conf << EOF
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
seccomp_sandbox = 0
remember_owner = 0
memory_backing_dir = "/run/memory"
$qemu_conf
EOF
libvirtd --listen &
libvirtd=$!
# This shell stays, as the parent of the QEMUs that libvirtd sends into the background.
while kill -0 $libvirtd 2> /dev/null; do wait $libvirtd || true; done
# It ended by itself.
cat /var/log/libvirt/libvirtd.log >&2
exit 1
