#!/usr/bin/env bash
# The README's first command: installs what is missing, builds the programs, fine-tunes the bundled model over the
# Debian archive's package descriptions on a couple of hundred virtual devices, and writes a report.
#
#   ./quickstart.sh                    the whole demonstration
#   ./quickstart.sh --rounds 3         arguments go to `fedge simulate` (see build/release/bin/fedge simulate --help)
set -euo pipefail
cd "$(dirname "$0")"
./setup.sh
cmake --preset release -DFEDGE_BUILD_TESTS=OFF --log-level=WARNING
cmake --build --preset release --target fedge fedge-server fedge-client
exec build/release/bin/fedge simulate "$@"
