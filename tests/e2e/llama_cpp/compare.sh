#!/usr/bin/env bash
# Does real llama.cpp read our files as we do? Prints the perplexity of both for each pair and fails
# when they differ by more than 0.5 % (llama.cpp also quantizes activations). Needs npm's registry
# for node-llama-cpp, which carries llama.cpp's binaries; not part of the test command.
#   compare.sh FEDGE TEXT CONTEXT WINDOWS MODEL[:ADAPTER] ...
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=${FEDGE_ORACLE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/fedge/llama-cpp}
fedge=$1 text=$2 context=$3 windows=$4
shift 4
mkdir -p "$work"
cp "$here/perplexity.mjs" "$work/"
if [ ! -d "$work/node_modules/node-llama-cpp" ]; then
  (cd "$work" && npm install --silent --no-save --ignore-scripts node-llama-cpp@3.22.1)
fi

perplexity_of() { sed -n 's/.*"perplexity": *\([0-9.eE+-]*\).*/\1/p' | head -1; }

status=0
printf '%-44s %12s %12s %9s\n' 'model : adapter' ours llama.cpp difference
for pair in "$@"; do
  model=${pair%%:*}
  adapter=
  [ "$pair" = "$model" ] || adapter=${pair#*:}
  ours=$("$fedge" eval --model "$model" ${adapter:+--lora "$adapter"} --data "$text" \
    --context "$context" --chunks "$windows" --format json 2>/dev/null | perplexity_of)
  theirs=$(node "$work/perplexity.mjs" "$model" "$text" "$context" "$windows" $adapter | perplexity_of)
  name="$(basename "$model")${adapter:+ : $(basename "$adapter")}"
  awk -v name="$name" -v a="$ours" -v b="$theirs" 'BEGIN {
    d = (a - b) / b; printf "%-44s %12.4f %12.4f %+8.3f%%\n", name, a, b, 100 * d
    exit (d > 0.005 || d < -0.005) }' || status=1
done
exit $status
