# What tests of packages count with; to be sourced. What a command says lies in $work, a folder of the test's.
# shellcheck shell=bash disable=SC2154
passed=0 failed=0 skipped=0
fail() { echo "error: $1" >&2; echo "hint: $2" >&2; exit 1; }
# ok WHAT COMMAND...: runs it, and counts
ok() {
  local what=$1
  shift
  if "$@" > "$work/said" 2>&1; then
    passed=$((passed + 1))
    echo "ok - $what"
  else
    failed=$((failed + 1))
    echo "not ok - $what"
    tail -n 20 "$work/said" | sed 's/^/  # /'
  fi
}
skip() { skipped=$((skipped + 1)) && echo "ok - $1 # skip $2"; }
# The last line, and the exit status.
counted() {
  echo "$passed passed, $failed failed$([ $skipped = 0 ] || echo ", $skipped skipped")"
  [ "$failed" = 0 ]
}
