#!/bin/sh
# Prints the newest glibc whose symbols the programs of a tree ask for, and refuses a library that the package's control
# file does not depend on: libc-needed.sh TRIPLET TREE. Works for foreign architectures, where dpkg-shlibdeps would want
# their libraries installed.
set -eu
triplet=$1
newest=0
list=$(mktemp)
trap 'rm -f "$list"' EXIT
find "$2/usr/lib/pageferry" -type f \( -name '*.node' -o -path '*/bin/node' \) > "$list"
while read -r binary; do
  headers=$("$triplet-objdump" -p "$binary")
  for library in $(echo "$headers" | sed -n 's/^ *NEEDED *//p'); do
    case $library in
      libc.so.6 | libm.so.6 | libdl.so.2 | libpthread.so.0 | librt.so.1 | ld-linux-*.so.*) ;; # libc6
      libstdc++.so.6) ;; # libstdc++6
      libgcc_s.so.1) ;; # libgcc-s1
      *) echo "error: $binary needs $library: name its package in debian/control" >&2 && exit 1 ;;
    esac
  done
  newest=$({ echo "$newest"; echo "$headers" | grep -o 'GLIBC_[0-9.]*' | cut -d_ -f2; } | sort -V | tail -n 1)
done < "$list"
echo "$newest"
