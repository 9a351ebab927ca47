#!/usr/bin/env bash
# Every C++ file is formatted as .clang-format says. `--fix` rewrites them.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=(--dry-run -Werror)
[ "${1:-}" = --fix ] && mode=(-i)
git ls-files -z -- '*.h' '*.cc' | xargs -0 -r -n 50 clang-format "${mode[@]}"
echo "format: clean"
