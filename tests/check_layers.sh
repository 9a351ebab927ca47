#!/usr/bin/env bash
# The include arrows go one way: proto <- common <- {server, client} <- tools; tests may use all. Inside common/ a
# folder includes only folders that stand before it in the order below. gRPC headers stay in *service.cc and grpc_*.
set -u
cd "$(dirname "$0")/.."

failures=0
fail() {
  echo "$1"
  failures=$((failures + 1))
}

# included <folder>: "file:include" for every quoted project include in the folder's sources.
included() {
  grep -rnE --include='*.h' --include='*.cc' '^#include "(common|server|client|tools|tests)/' "$1" 2>/dev/null |
    sed -E 's/^([^:]+):[0-9]+:#include "([^"]+)".*/\1:\2/'
}

forbid() { # forbid <folder> <regex of includes it must not have>
  local line
  while IFS= read -r line; do
    [[ -n "$line" ]] && fail "layering: ${line%%:*} includes ${line#*:}"
  done < <(included "$1" | grep -E ":($2)")
}

forbid common 'server/|client/|tools/|tests/'
forbid server 'client/|tools/|tests/'
forbid client 'server/|tools/|tests/'
forbid tools 'tests/'

order=(base security config tensor adapter formats model training codec)
for i in "${!order[@]}"; do
  for ((j = i + 1; j < ${#order[@]}; j++)); do
    # The codec knows adapters, not models; the order below it is a chain.
    forbid "common/${order[$i]}" "common/${order[$j]}/"
  done
done
for folder in common/*/; do
  name=$(basename "$folder")
  [[ " ${order[*]} " == *" $name "* ]] || fail "layering: common/$name is not in the order of tests/check_layers.sh"
done
forbid common/codec 'common/(formats|model|training|config)/'

while IFS= read -r file; do
  case "$(basename "$file")" in
    *service.cc | *service.h | grpc_*) ;;
    *) fail "layering: $file includes gRPC headers (only *service.* and grpc_* may)" ;;
  esac
done < <(grep -rlE --include='*.h' --include='*.cc' '#include [<"](grpcpp/|grpc/|.*\.grpc\.pb\.h)' common server client tools 2>/dev/null)

for word in utils helpers manager; do
  while IFS= read -r file; do
    fail "naming: $file (name what it hides)"
  done < <(find common server client tools -iname "*$word*" 2>/dev/null)
done

if [ "$failures" -gt 0 ]; then
  echo "$failures arrow(s) point the wrong way"
  exit 1
fi
echo "layers: all include arrows point the right way"
