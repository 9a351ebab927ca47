#!/usr/bin/env bash
# The README's second command: installs what is missing, builds everything, runs every test.
#
#   ./test.sh              all tests
#   ./test.sh -L quick     arguments go to ctest
set -euo pipefail
cd "$(dirname "$0")"
./setup.sh
cmake --preset release -DFEDGE_BUILD_TESTS=ON
cmake --build --preset release
exec ctest --preset release "$@"
