#!/usr/bin/env bash
# The packages under a real systemd, the first process of a container: installs them, starts the server's unit, joins a
# device, starts its unit, waits for a version that it trained; stops the device's process dead (SIGSTOP): the watchdog must have it
# started again; kills the server's: it must come again and the run go on; upgrades the device's package in place.
#   systemd.sh               with the packages in build/release/packages (deploy/package.sh makes them)
#   systemd.sh --packages F  with those in folder F
#   systemd.sh --if-asked    if FEDGE_E2E_DOCKER is set and the packages are there: ctest does not run it by itself
# Exit code 77, "skipped": no Docker engine answers, or there are no packages. The image with systemd is kept: fedge-systemd.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/e2e/common.sh

packages=build/release/packages
case "${1:-}" in
  "") ;;
  --if-asked) [ -n "${FEDGE_E2E_DOCKER:-}" ] || skip "FEDGE_E2E_DOCKER is not set" ;;
  --packages) packages=${2:?systemd.sh --packages FOLDER} ;;
  *) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
docker info >/dev/null 2>&1 || skip "no Docker engine answers (Debian: apt-get install docker.io; dockerd)"
for package in fedge fedge-server fedge-client; do
  compgen -G "$packages/${package}_*.deb" >/dev/null || skip "no package $package in $packages (deploy/package.sh)"
done

work=$(mktemp -d)
box=fedge-systemd-$$
tear_down() {
  local code=$?
  [ "$code" -eq 0 ] || docker exec "$box" journalctl --no-pager -n 60 2>/dev/null || true
  docker rm -f "$box" >/dev/null 2>&1 || true
  rm -rf "$work"
  exit "$code"
}
trap tear_down EXIT

if ! docker image inspect fedge-systemd >/dev/null 2>&1; then
  command -v debootstrap >/dev/null || skip "no image fedge-systemd and no debootstrap to make it with"
  say "making the image fedge-systemd with debootstrap"
  debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus bookworm "$work/root" >"$work/debootstrap.log" ||
    fail "debootstrap: $(tail -1 "$work/debootstrap.log")"
  tar -C "$work/root" -c . | docker import - fedge-systemd >/dev/null
fi

inside() { docker exec "$box" "$@"; }
property() { inside systemctl show --value -p "$1" "$2"; }
operator() { inside fedge "$@" --server unix:/var/lib/fedge/server/admin.sock; }
run_json() { operator run show first --format json 2>/dev/null | tr -d '\n' || true; }
version() { number version "$(run_json)"; }
version_is() { [ "$(version)" -ge "$1" ]; }
is_up() { [ "$(inside systemctl is-system-running 2>/dev/null)" = running ]; }
has_another_process() { [ "$(property MainPID "$1")" -gt 0 ] && [ "$(property MainPID "$1")" != "$2" ]; }
is_active() { [ "$(property ActiveState "$1")" = active ]; }

# What systemd's own sandboxes need, no more; not --privileged.
docker run -d --name "$box" --cap-add SYS_ADMIN --cap-add SYS_PTRACE --security-opt seccomp=unconfined --security-opt apparmor=unconfined \
  --tmpfs /run --tmpfs /run/lock --tmpfs /tmp -v /sys/fs/cgroup:/sys/fs/cgroup:rw -e container=docker \
  fedge-systemd /lib/systemd/systemd --show-status=false >/dev/null
wait_for 60 is_up
say "$(inside systemctl --version | head -1), $(inside systemctl is-system-running)"

docker cp "$packages" "$box:/srv/packages"
inside sh -c 'apt-get update -qq && apt-get install -qq -y --no-install-recommends /srv/packages/*.deb' >"$work/install.log" 2>&1 ||
  fail "install: $(tail -2 "$work/install.log")"
say "installed $(inside dpkg-query -W -f '${Package} ${Version} ' fedge fedge-server fedge-client)"
[ "$(property ActiveState fedge-server)" = inactive ] || fail "the installation started the server"

# The package's configuration with what an operator sets; the smallest run there is.
inside sh -c 'sed -i "s|^# base_model:.*|base_model: /usr/share/fedge/models/fedge-tiny-q8_0.gguf|; /^run:/,\$d" /etc/fedge/server.yaml
cat >>/etc/fedge/server.yaml <<END
retry_seconds: 1
run:
  id: first
  rounds: 1000
  nodes_per_round: 1
  min_nodes: 1
  lora: {rank: 4}
  training: {steps: 2, batch_size: 2, length: 64}
END
fedge-server --config /etc/fedge/server.yaml --check' >/dev/null || fail "the server's configuration"
inside systemctl enable -q --now fedge-server || fail "fedge-server does not start"
is_active fedge-server || fail "fedge-server is $(property ActiveState fedge-server)"
say "fedge-server: $(property Type fedge-server), \"$(property StatusText fedge-server)\", user $(property User fedge-server)"

# Not joined: the unit waits for the condition, quietly.
inside systemctl start fedge-client
[ "$(property ConditionResult fedge-client)" = no ] || fail "the device's unit started without an identity"
docker cp deploy/sample_data.sh "$box:/srv/sample_data.sh"
inside sh -c 'sh /srv/sample_data.sh robot 60 >/srv/reports.txt
sed -i "s|^# data:.*|data: /srv/reports.txt|" /etc/fedge/client.yaml
sed -i "s|^policy:.*|threads: 1\npolicy:\n  max_load: 1|" /etc/fedge/client.yaml
mkdir -p /etc/systemd/system/fedge-client.service.d
printf "[Service]\nWatchdogSec=6\nTimeoutAbortSec=2\nRestartSec=1\n" >/etc/systemd/system/fedge-client.service.d/soon.conf
systemctl daemon-reload'
token=$(operator token create --address 127.0.0.1:9481 --no-qr | head -1)
inside runuser -u fedge -- fedge-client join --state-dir /var/lib/fedge/client --node-id robot-1 --token "$token" || fail "join"
inside systemctl enable -q --now fedge-client || fail "fedge-client does not start"
wait_for 180 version_is 2
say "version $(version) is published; robot-1 trained it"
inside runuser -u fedge -- fedge-client doctor --config /etc/fedge/client.yaml || fail "doctor: exit code $?"
inside test -f /var/lib/fedge/client/adapters/current/adapter.gguf || fail "no adapter at the stable path"
inside systemctl status --no-pager -n 5 fedge-server fedge-client
inside systemd-analyze security --no-pager --threshold=15 fedge-server fedge-client >"$work/exposure.log" ||
  fail "systemd-analyze: $(grep exposure "$work/exposure.log")"
say "$(grep -o 'Overall exposure level for [a-z.-]*: [0-9.]* [A-Z]*' "$work/exposure.log" | paste -sd';')"

device=$(property MainPID fedge-client)
started=$SECONDS
inside systemctl kill --kill-who=main -s STOP fedge-client
wait_for 60 has_another_process fedge-client "$device"
wait_for 30 is_active fedge-client
inside journalctl -u fedge-client --no-pager -o cat | grep -q 'Watchdog timeout' || fail "it was not the watchdog"
say "SIGSTOP of the device's process: the watchdog had it started again after $((SECONDS - started)) s (WatchdogSec=6)"
before=$(version)
wait_for 120 version_is $((before + 2))
say "and it went on: version $before -> $(version)"

server=$(property MainPID fedge-server)
inside systemctl kill --kill-who=main -s KILL fedge-server
wait_for 60 has_another_process fedge-server "$server"
wait_for 60 is_active fedge-server
wait_for 120 version_is $((before + 3))
say "kill -9 of the server: process $server -> $(property MainPID fedge-server), version $(version)"

device=$(property MainPID fedge-client)
inside sh -c 'apt-get install -qq -y --reinstall /srv/packages/fedge-client_*.deb' >"$work/upgrade.log" 2>&1 || fail "upgrade: $(tail -2 "$work/upgrade.log")"
wait_for 30 has_another_process fedge-client "$device"
inside systemctl stop fedge-client fedge-server
for unit in fedge-client fedge-server; do
  [ "$(property Result "$unit")" = success ] || fail "$unit ended with $(property Result "$unit")"
done
say "the upgrade restarted the device; both stopped cleanly"
say "passed"
