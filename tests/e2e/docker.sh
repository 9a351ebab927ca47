#!/usr/bin/env bash
# The containers as a user meets them: builds the images, brings the demonstration up, kills the server in the middle of a
# round, starts it again, checks that nothing was lost, exports the adapter, looks at Prometheus, tears down.
#   docker.sh              all of it, images included
#   docker.sh --no-build   with the images that are there
#   docker.sh --if-asked   all of it if FEDGE_E2E_DOCKER is set: it takes a quarter of an hour, so ctest does not by itself
# Exit code 77, "skipped": no Docker engine answers. Needs the ports 9480, 9481 and 9090 of 127.0.0.1.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/e2e/common.sh

if [ "${1:-}" = --if-asked ] && [ -z "${FEDGE_E2E_DOCKER:-}" ]; then
  skip "FEDGE_E2E_DOCKER is not set"
fi
docker info >/dev/null 2>&1 || skip "no Docker engine answers (Debian: apt-get install docker.io docker-compose; dockerd)"
if docker compose version >/dev/null 2>&1; then
  compose=(docker compose)
elif command -v docker-compose >/dev/null; then
  compose=(docker-compose)
else
  skip "neither docker compose nor docker-compose is installed"
fi
work=$(mktemp -d)
# More rounds than the demonstration has: time to meet one that is open.
rounds=12
cat >"$work/rounds.yml" <<END
version: "2.4"
services:
  server:
    command: ["--config", "/etc/fedge/server.yaml", "--join-token-file", "/run/fedge-join/token", "--rounds", "$rounds"]
END
compose+=(--project-name fedge-e2e -f docker-compose.yml -f "$work/rounds.yml")
tear_down() {
  local code=$?
  [ "$code" -eq 0 ] || "${compose[@]}" --profile demo logs --tail 40 || true
  "${compose[@]}" --profile demo --profile monitoring down --volumes --timeout 5 >"$work/down.log" 2>&1 || true
  rm -rf "$work"
  exit "$code"
}
trap tear_down EXIT

# The base image: of the registry, or made from Debian's archive where there is no way to it.
make_base() {
  docker image inspect debian:bookworm-slim >/dev/null 2>&1 && return
  docker pull debian:bookworm-slim >/dev/null 2>&1 && return
  command -v debootstrap >/dev/null || fail "no image debian:bookworm-slim, no registry, no debootstrap to make it with"
  say "making debian:bookworm-slim with debootstrap"
  debootstrap --variant=minbase bookworm "$work/root" >"$work/debootstrap.log" || fail "debootstrap: $(tail -1 "$work/debootstrap.log")"
  tar -C "$work/root" -c . | docker import - debian:bookworm-slim >/dev/null
}

operator() { "${compose[@]}" exec -T server fedge "$@"; }
# The run as JSON on one line; empty while the server does not answer.
run_json() { operator run show demo --format json 2>/dev/null | tr -d '\n' || true; }
version_is() { [ "$(number version "$(run_json)")" -ge "$1" ]; }
# An open round with an update acknowledged; leaves the run in `before`.
in_the_middle() {
  before=$(run_json)
  [ "$(number version "$before")" -ge 1 ] && grep -q '"collecting": *true' <<<"$before" && [ "$(number accepted "$before")" -ge 1 ]
}
healthy() { [ "$(docker inspect -f '{{.State.Health.Status}}' "$server" 2>/dev/null)" = healthy ]; }
scraped() { curl -sf "http://127.0.0.1:9090/api/v1/query?query=fedge_run_version" | grep -q '"run":"demo"'; }

[ "${1:-}" = --no-build ] || {
  make_base
  say "building the images"
  for target in server client monitoring; do
    docker build -q --network=host -f deploy/Dockerfile --target "$target" -t "fedge-$target" . >/dev/null
  done
}
docker images --format '{{.Repository}} {{.Size}}' | grep '^fedge-' | sort | sed 's/^/docker: image /'

"${compose[@]}" --profile demo up -d --no-build >"$work/up.log" 2>&1 || fail "up: $(tail -3 "$work/up.log")"
server=$("${compose[@]}" ps -q server)
wait_for 180 in_the_middle
docker kill --signal KILL "$server" >/dev/null
say "killed the server in round $(number round "$before") with $(number accepted "$before") of 3 updates acknowledged"
docker start "$server" >/dev/null
wait_for 60 healthy
after=$(run_json)
say "it is back in round $(number round "$after") at version $(number version "$after")"
[ "$(number version "$after")" -ge "$(number version "$before")" ] || fail "it forgot versions"
wait_for 600 version_is "$rounds"

nodes=$(operator nodes --format json)
accepted=$(grep -o '"accepted": *"\{0,1\}[0-9]*' <<<"$nodes" | grep -o '[0-9]*$' | awk '{n += $1} END {print n + 0}')
[ "$accepted" -eq $((3 * rounds)) ] || fail "$rounds rounds of 3 nodes are $((3 * rounds)) accepted updates, not $accepted"
say "version $rounds is published; $accepted of $((3 * rounds)) updates counted, none twice"

operator models export --run demo --out /tmp/adapter --model /usr/share/fedge/models/fedge-tiny-q8_0.gguf \
  >"$work/export.log" 2>&1 || fail "export: $(tail -1 "$work/export.log")"
"${compose[@]}" exec -T server sh -c 'head -c 4 /tmp/adapter/adapter.gguf' | grep -q GGUF || fail "the export holds no GGUF adapter"
say "exported the adapter: $("${compose[@]}" exec -T server ls -s /tmp/adapter/adapter.gguf)"

"${compose[@]}" --profile monitoring up -d --no-build prometheus >>"$work/up.log" 2>&1
wait_for 60 scraped
say "Prometheus sees the run"
say "passed"
