#!/bin/sh
# Runs after npm ci / npm install in a checkout: builds the kernel, and lz4's addon for the Node that runs Pageferry.
set -eu
cd "$(dirname "$0")/.."
[ -d src ] || exit 0 # an installed package brings dist/
# without development packages (npm ci --omit=dev) a kernel that is there stays, else its TypeScript twin works
[ ! -d node_modules/assemblyscript ] || sh scripts/build-kernel.sh
sh scripts/rebuild-lz4.sh
