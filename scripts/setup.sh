#!/bin/sh
# Brings a fresh checkout to where every make target works: npm packages (with Node 24), and the distribution's packages that
# need root. Quick when all is there.
set -eu
cd "$(dirname "$0")/.."
if ! command -v npm >/dev/null 2>&1; then
  echo 'error: npm is not installed' >&2
  echo 'hint: install Node 20 or newer with npm' >&2
  exit 1
fi
echo 'Installing npm packages (Node 24 among them); the first time takes a minute or two' >&2
log=$(mktemp)
if ! npm ci --no-progress >"$log" 2>&1; then
  tail -n 30 "$log" >&2
  echo "error: npm ci failed" >&2
  echo "hint: is the npm registry reachable? whole output: $log" >&2
  exit 1
fi
rm -f "$log"
