#!/usr/bin/env bash
# Installs the Debian packages that building and testing Fedge needs and this machine lacks; nothing else.
# Idempotent. Needs root or sudo only when something is missing.
#
#   ./setup.sh            build and test
#   ./setup.sh --docker   also the Docker engine and compose (for deploy/)
#   ./setup.sh --arm64    also what cross-compiles for 64-bit ARM, and qemu to run it (deploy/README.md)
#   ./setup.sh --missing  names the packages it would install, by itself or after other options; installs nothing
set -euo pipefail

packages=(
  # toolchain
  g++ cmake ninja-build ccache pkg-config ca-certificates clang-format
  # wire, store, cryptography
  libgrpc++-dev protobuf-compiler-grpc libprotobuf-dev protobuf-compiler libabsl-dev libssl-dev libsqlite3-dev
  # SIMD, text, configuration, command line, logging
  libeigen3-dev libhwy-dev libutf8proc-dev libqrencode-dev prometheus-cpp-dev libyaml-cpp-dev libcli11-dev nlohmann-json3-dev libspdlog-dev
  # tests
  libgtest-dev libgmock-dev
)
# libyaml-cpp-dev:arm64 and prometheus-cpp-dev:arm64 would push out this machine's own; cmake/arm64 makes do with the libraries.
arm64_packages=(
  crossbuild-essential-arm64 qemu-user-static
  libgrpc++-dev:arm64 libprotobuf-dev:arm64 libabsl-dev:arm64 libssl-dev:arm64 libsqlite3-dev:arm64
  libhwy-dev:arm64 libutf8proc-dev:arm64 libqrencode-dev:arm64 libprometheus-cpp-pull1.0:arm64 libyaml-cpp0.7:arm64 libspdlog-dev:arm64
  libgtest-dev:arm64 libgmock-dev:arm64
)
only_list=false
for argument in "$@"; do
  case "$argument" in
    --docker) packages+=(docker.io docker-compose) ;;
    --arm64) packages+=("${arm64_packages[@]}") ;;
    --missing) only_list=true ;;
    *)
      sed -n '2,8s/^# \{0,1\}//p' "$0"
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
if $only_list; then
  [ ${#missing[@]} -eq 0 ] || printf '%s\n' "${missing[@]}"
  exit 0
fi
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
case " ${missing[*]} " in *:arm64*) "${as_root[@]}" dpkg --add-architecture arm64 ;; esac
"${as_root[@]}" apt-get update -q
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
  apt-get install -q -y --no-remove --no-install-recommends "${missing[@]}"
