#!/bin/sh
# Runs after npm ci / npm install in a checkout: builds the kernel, and lz4's addon for the Node that runs Pageferry.
set -eu
cd "$(dirname "$0")/.."
[ -d src ] || exit 0 # an installed package brings dist/
sh scripts/build-kernel.sh
sh scripts/rebuild-lz4.sh
