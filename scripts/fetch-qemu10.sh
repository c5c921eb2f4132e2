#!/usr/bin/env bash
# Puts QEMU 10 (the build of Debian 13, "trixie") into DIR, beside the QEMU 7.2 of a Debian 12 system and without touching
# that system's packages. About 40 MB to download, 150 MB on disk, a minute.
#
#   scripts/fetch-qemu10.sh DIR        afterwards DIR/qemu10 ARGS... runs qemu-system-x86_64 10.x
#
# The packages come from the mirror that this machine's own apt uses, checked against Debian's keyring, through a private
# apt state with an empty list of installed packages: so every library down to libc is fetched, and the program runs on
# its own loader. Run again it does nothing when QEMU 10 is there. Two runs at once wait for each other.
set -euo pipefail

fail() { echo "error: $1" >&2; [ -z "${2-}" ] || echo "hint: $2" >&2; exit 1; }

if [ $# != 1 ] || [ -z "$1" ] || [ "${1#-}" != "$1" ]; then fail 'one folder is needed' "usage: ${0##*/} DIR"; fi
mkdir -p "$1" || fail "cannot make the folder $1"
dir=$(cd "$1" && pwd -P)
present() { [ -x "$dir/qemu10" ] && "$dir/qemu10" --version 2>/dev/null | grep -q 'version 1[0-9]\.'; }
if present; then exit 0; fi

suite=trixie
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
for tool in apt-get dpkg flock; do
  command -v "$tool" >/dev/null || fail "$tool is missing" 'this script needs a Debian system'
done
[ "$(dpkg --print-architecture)" = amd64 ] || fail 'only amd64 is known here' "install QEMU 10 by hand as $dir/qemu10"
[ -r "$keyring" ] || fail "$keyring is missing" 'apt-get install debian-archive-keyring'

# DIR/usr is replaced below: never one that is not ours.
[ -e "$dir/.lock" ] || [ ! -e "$dir/usr" ] || fail "$dir has a usr folder that this script did not make" 'name an empty folder'
exec 9>"$dir/.lock"
flock 9
if present; then exit 0; fi

# shellcheck disable=SC2016 # $(REPO_URI) is for apt, not for the shell
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $(. /etc/os-release && echo "${VERSION_CODENAME-}")" |
  sed -n 1p)
[ -n "$mirror" ] || fail "this machine's apt names no mirror of its own release" 'run apt-get update'

work=$dir/.work
rm -rf "$work"
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{debs,root,etc/{apt.conf.d,preferences.d,sources.list.d},state,lists/partial,cache/archives/partial}
: > "$work/state/status"
cat > "$work/etc/sources.list.d/qemu10.sources" <<X
Types: deb
URIs: $mirror
Suites: $suite $suite-updates
Components: main
Signed-By: $keyring
X
# The system's own apt configuration stays in force (a proxy stands there, for one); only what is named here is replaced.
cat > "$work/apt.conf" <<X
Dir::Etc "$work/etc";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$work/etc/sources.list.d";
Dir::Etc::preferencesparts "$work/etc/preferences.d";
Dir::State "$work/state";
Dir::State::status "$work/state/status";
Dir::State::lists "$work/lists";
Dir::Cache "$work/cache";
Acquire::Languages "none";
APT::Architectures { "amd64"; };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
X
export APT_CONFIG=$work/apt.conf

log=$work/apt.log
echo "fetching QEMU 10 into ${1%/} ..." >&2
apt-get -q -q update > "$log" 2>&1 || { cat "$log" >&2; fail "the mirror does not give the lists of $suite"; }
packages=$(apt-get -s install qemu-system-x86 2>"$log" | sed -n 's/^Inst \([^ ]*\) .*/\1/p')
[ -n "$packages" ] || { cat "$log" >&2; fail "qemu-system-x86 of $suite cannot be resolved"; }
# shellcheck disable=SC2086 # one word a package
(cd "$work/debs" && apt-get -q -q download $packages) > "$log" 2>&1 || { cat "$log" >&2; fail 'the download failed' 'run it again'; }
for deb in "$work"/debs/*.deb; do
  dpkg -x "$deb" "$work/root" || fail "${deb##*/} cannot be unpacked"
done

# The program and what it reads: the rest of the unpacked system (documentation, locales, other programs) is left out.
rm -rf "${dir:?}/usr" "$dir/qemu10"
mkdir -p "$dir/usr/bin" "$dir/usr/share"
mv "$work/root/usr/bin/qemu-system-x86_64" "$dir/usr/bin/"
mv "$work/root/usr/lib" "$dir/usr/lib"
[ ! -d "$work/root/usr/lib64" ] || mv "$work/root/usr/lib64" "$dir/usr/lib64"
for share in "$work"/root/usr/share/{qemu,seabios}; do mv "$share" "$dir/usr/share/"; done
cat > "$work/qemu10" <<'X'
#!/bin/sh
# Made by fetch-qemu10.sh: QEMU 10 on its own loader and libraries.
dir=$(dirname "$(readlink -f "$0")")
lib=$dir/usr/lib/x86_64-linux-gnu
export QEMU_MODULE_DIR="$lib/qemu"
exec "$lib/ld-linux-x86-64.so.2" --library-path "$lib:$lib/pulseaudio" \
  "$dir/usr/bin/qemu-system-x86_64" -L "$dir/usr/share/qemu" -L "$dir/usr/share/seabios" "$@"
X
chmod +x "$work/qemu10"
mv "$work/qemu10" "$dir/qemu10"
present || { "$dir/qemu10" --version >&2 || true; fail 'QEMU 10 was unpacked but does not run' "remove $dir and run it again"; }
"$dir/qemu10" --version | sed -n 1p >&2
