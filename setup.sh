#!/usr/bin/env bash
# Installs the Debian packages that building and testing Fedge needs and this machine lacks; nothing else.
# Idempotent. Needs root or sudo only when something is missing.
#
#   ./setup.sh            build and test
#   ./setup.sh --docker   also the Docker engine and compose (for deploy/)
set -euo pipefail

packages=(
  # toolchain
  g++ cmake ninja-build ccache pkg-config ca-certificates clang-format
  # wire, store, cryptography
  libgrpc++-dev protobuf-compiler-grpc libprotobuf-dev protobuf-compiler libabsl-dev libssl-dev libsqlite3-dev
  # SIMD, text, configuration, command line, logging
  libeigen3-dev libhwy-dev libutf8proc-dev libyaml-cpp-dev libcli11-dev nlohmann-json3-dev libspdlog-dev
  # tests
  libgtest-dev libgmock-dev
)
for argument in "$@"; do
  case "$argument" in
    --docker) packages+=(docker.io docker-compose) ;;
    *)
      sed -n '2,6s/^# \{0,1\}//p' "$0"
      exit 2
      ;;
  esac
done

missing=()
for package in "${packages[@]}"; do
  if ! dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed'; then
    missing+=("$package")
  fi
done
if [ ${#missing[@]} -eq 0 ]; then
  echo "setup: all ${#packages[@]} packages are installed"
  exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || {
    echo "setup: missing: ${missing[*]}; run as root: apt-get install ${missing[*]}" >&2
    exit 1
  }
  as_root=(sudo)
fi
echo "setup: installing ${missing[*]}"
"${as_root[@]}" apt-get update -q
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
