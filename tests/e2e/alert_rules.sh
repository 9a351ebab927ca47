#!/usr/bin/env bash
# The alerts of deploy/monitoring, by Prometheus' own checker. Exit code 77, "skipped": promtool is not installed.
set -euo pipefail
cd "$(dirname "$0")/../../deploy/monitoring"
command -v promtool >/dev/null || {
  echo "alert_rules: skipped: no promtool (Debian: apt-get install prometheus)"
  exit 77
}
promtool check config prometheus.yml
promtool test rules rules_test.yml
