#!/usr/bin/env bash
# Debian packages of the three programs, for this machine or for 64-bit ARM, into build/<preset>/packages.
#
#   deploy/package.sh            this machine's architecture
#   deploy/package.sh --arm64    cross-compiled (./setup.sh --arm64 first)
set -euo pipefail
cd "$(dirname "$0")/.."
preset=release
case "${1:-}" in
  "") ;;
  --arm64) preset=arm64 ;;
  *)
    sed -n '2,5s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
for tool in dpkg-shlibdeps cpack; do
  command -v "$tool" >/dev/null || {
    echo "package.sh: $tool is missing; apt-get install dpkg-dev cmake" >&2
    exit 3
  }
done
if [ ! -f "build/$preset/build.ninja" ]; then cmake --preset "$preset" --log-level=WARNING; fi
cmake --build --preset "$preset" --target fedge-server fedge-client fedge
rm -rf "build/$preset/packages"
(cd "build/$preset" && cpack -G DEB >packages.log 2>&1) || {
  tail -5 "build/$preset/packages.log" >&2
  exit 1
}
for package in "build/$preset"/packages/*.deb; do
  installed=$(dpkg-deb -f "$package" Installed-Size)
  printf '%s  %s KB, %s KB installed\n' "$package" "$(($(stat -c %s "$package") / 1024))" "$installed"
done
