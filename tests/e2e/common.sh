# Sourced by the scripts beside it: what they say, and how they wait. Named after the script that runs.
script_name=$(basename "$0" .sh)

say() { echo "$script_name: $*"; }
fail() { say "FAILED: $*" >&2; exit 1; }
skip() { say "skipped: $*"; exit 77; }  # ctest's SKIP_RETURN_CODE

# Until the command holds, at most $1 seconds; `gone`, where a script defines it, ends the wait early.
gone() { false; }
wait_for() {
  local seconds=$1
  shift
  local end=$((SECONDS + seconds))
  while [ $SECONDS -lt $end ]; do
    "$@" && return
    ! gone || fail "the server died"
    sleep 0.3
  done
  fail "not within $seconds s: $*"
}
# The number behind the first "$1" of the JSON text $2; 0 if it is not there.
number() { grep -o "\"$1\": *\"\{0,1\}[0-9]*" <<<"$2" | head -1 | grep -o '[0-9]*$' || echo 0; }
