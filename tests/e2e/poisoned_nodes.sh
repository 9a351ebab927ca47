#!/usr/bin/env bash
# A gate at work between real processes over TLS: two devices train; two others whose texts are nonsense take their places: what they
# make is refused, and the devices go on with the version of before. Then an operator rolls back, the devices follow, and the
# audit log is checked; last, a record of it that somebody changes is found (where there is a sqlite3 or a python3 to change it with).
#   poisoned_nodes.sh             with the programs in build/release/bin
#   poisoned_nodes.sh --programs F  with those in folder F
# Exit code 77, "skipped": the programs or the bundled model are not there.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/e2e/common.sh

programs=build/release/bin
case "${1:-}" in
  "") ;;
  --programs) programs=${2:?poisoned_nodes.sh --programs FOLDER} ;;
  *) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
model=$PWD/models/fedge-tiny/fedge-tiny-q8_0.gguf
[ -f "$model" ] || skip "no $model (setup.sh makes it)"
for program in fedge fedge-server fedge-client; do
  [ -x "$programs/$program" ] || skip "no $programs/$program"
done
programs=$(cd "$programs" && pwd)

work=$(mktemp -d)
declare -A process
tear_down() {
  local code=$?
  for pid in "${process[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  if [ "$code" -ne 0 ]; then tail -n 15 "$work"/*.log >&2 || true; fi
  rm -rf "$work"
  exit "$code"
}
trap tear_down EXIT

operator() { "$programs/fedge" "$@" --server "unix:$work/server/admin.sock"; }
gone() { ! kill -0 "${process[server]}" 2>/dev/null; }
version() { number version "$(operator run show first --format json 2>/dev/null)"; }
version_is() { [ "$(version)" -ge "$1" ]; }
decisions() { operator models audit --run first --format json 2>/dev/null | grep -o '"action": *"[a-z-]*"' || true; }
refusals_are() { [ "$(decisions | grep -c refuse)" -ge "$1" ]; }
values_of() { operator models show "$1" --run first | sed -n 's/^values *//p'; }
holds() {
  number version "$("$programs/fedge-client" status --state-dir "$work/$1" --format json 2>/dev/null | tr -d '\n' | grep -o '"adapter": *{[^}]*')"
}
holds_at_least() { [ "$(holds "$1")" -ge "$2" ]; }
start_device() {
  printf 'data: %s\nmodel: %s\nstate_dir: %s\nthreads: 1\npolicy: {max_load: 1}\n' "$work/$1.txt" "$model" "$work/$1" >"$work/$1.yaml"
  "$programs/fedge-client" run --config "$work/$1.yaml" >>"$work/$1.log" 2>&1 &
  process[$1]=$!
}
stop() {
  kill "${process[$1]}"
  wait "${process[$1]}" 2>/dev/null || true
  unset "process[$1]"
}

# Texts of one kind, and as much nonsense.
sh deploy/sample_data.sh kiosk 200 >"$work/held_out.txt"
sh deploy/sample_data.sh kiosk 120 >"$work/honest-1.txt"
sh deploy/sample_data.sh kiosk 160 >"$work/honest-2.txt"
for node in 1 2; do
  awk -v seed="$node" 'BEGIN { srand(seed); for (line = 0; line < 400; line++) {
    text = ""; for (i = 0; i < 160; i++) text = text sprintf("%c", 33 + int(rand() * 90)); print text "\n" } }' >"$work/poisoned-$node.txt"
done

cat >"$work/server.yaml" <<END
base_model: $model
holdout: $work/held_out.txt
state_dir: $work/server
listen: 127.0.0.1:0
enroll_listen: 127.0.0.1:0
retry_seconds: 0.5
run:
  id: first
  rounds: 1000
  nodes_per_round: 2
  min_nodes: 2
  lease_seconds: 3           # devices that were switched off are given up soon
  round_deadline_seconds: 10
  lora: {rank: 4}
  training: {steps: 6, batch_size: 2, length: 64, learning_rate: 0.01}
END
start_server() {
  "$programs/fedge-server" --config "$work/server.yaml" >"$work/server.log" 2>&1 &
  process[server]=$!
  wait_for 60 grep -q 'devices join on port' "$work/server.log"
}
start_server
port=$(sed -n 's/.*devices join on port \([0-9]*\).*/\1/p' "$work/server.log")
for node in honest-1 honest-2 poisoned-1 poisoned-2; do
  token=$(operator token create --address "127.0.0.1:$port" --no-qr | head -1)
  "$programs/fedge-client" join --state-dir "$work/$node" --node-id "$node" --token "$token" >"$work/$node.log" 2>&1 || fail "join of $node"
done

start_device honest-1
start_device honest-2
wait_for 300 version_is 3
say "two devices made version $(version)"
stop honest-1
stop honest-2

before=$(version)
start_device poisoned-1
start_device poisoned-2
wait_for 300 refusals_are 2
say "with nonsense: $(grep -m 1 'refused: ' "$work/server.log" | sed 's/^[^ ]* [A-Z] //')"
stop poisoned-1
stop poisoned-2
after=$(version)
[ "$after" -le $((before + 1)) ] || fail "version $before became $after with poisoned devices"  # one may have been under way

start_device honest-1
start_device honest-2
wait_for 300 version_is $((after + 1))
say "with the honest ones again: version $(version)"

operator models rollback 1 --run first >"$work/rollback.log"
rolled=$(grep -o '^version *[0-9]*' "$work/rollback.log" | head -1 | grep -o '[0-9]*')
[ "$(values_of 1)" = "$(values_of "$rolled")" ] || fail "version $rolled is not version 1 again"
for device in honest-1 honest-2; do wait_for 300 holds_at_least "$device" "$rolled"; done
wait_for 300 version_is $((rolled + 1))
say "rolled back: version $rolled is version 1 again ($(values_of 1 | cut -c 1-16)...); honest-1 holds version $(holds honest-1), honest-2 $(holds honest-2)"

operator models audit --verify --run first | tail -1
for device in honest-1 honest-2 server; do stop "$device"; done

# The server has its database for itself.
change="DROP TRIGGER audit_stays; UPDATE audit SET detail = '{}' WHERE number = 4"
if command -v sqlite3 >/dev/null; then
  sqlite3 "$work/server/fedge.db" "$change"
elif command -v python3 >/dev/null; then
  python3 -c 'import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.executescript(sys.argv[2]); db.commit()' "$work/server/fedge.db" "$change"
else
  change=
  say "no record was changed: neither sqlite3 nor python3"
fi
if [ -n "$change" ]; then
  start_server
  operator models audit --verify --run first >"$work/audit.log" 2>&1 && fail "a changed record was not found"
  grep -q 'record 4' "$work/audit.log" || fail "the changed record was not named"
  say "$(tail -1 "$work/audit.log" | cut -c 1-110)..."
  stop server
fi
say "passed"
