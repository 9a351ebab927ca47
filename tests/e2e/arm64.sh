#!/usr/bin/env bash
# Cross-compiles everything for 64-bit ARM and runs the quick tests under qemu. Where the packages
# are not installed it says "skipped" and names them (`setup.sh --arm64` installs them).
#   arm64.sh                         all programs, ctest -L quick
#   arm64.sh TARGET ... [-- CTEST]   these targets only; what follows -- goes to ctest
# qemu interprets vectors: expect 20 to 50 times the time of the machine itself.
set -euo pipefail
cd "$(dirname "$0")/../.."

targets=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  targets+=("$1")
  shift
done
[ $# -eq 0 ] || shift
selection=("$@")
[ ${#selection[@]} -gt 0 ] || selection=(-L quick)

missing=$(./setup.sh --arm64 --missing | tr '\n' ' ')
if [ -n "$missing" ]; then
  echo "arm64: skipped: not installed: $missing"
  exit 0
fi
cmake --preset arm64
cmake --build --preset arm64 ${targets[@]+--target "${targets[@]}"}
exec ctest --preset arm64 "${selection[@]}"
