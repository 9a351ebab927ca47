#!/bin/sh
# Pre-trains fedge-tiny from the corpus and tokenizer that recipe.sh left in OUT.
#
#   models/fedge-tiny/train.sh OUT [FEDGE]        FEDGE: the program (default build/release/bin/fedge)
#
# Writes OUT/fedge-tiny-q8_0.gguf: one pass over 17 million tokens, half an hour on two quiet cores. The same machine
# type gives the same bytes; another SIMD unit rounds differently and gives another model of the same quality. Ctrl-C
# keeps a checkpoint, the same command goes on there.
set -eu
[ $# -ge 1 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
fedge=${2:-$here/../../build/release/bin/fedge}
exec "$fedge" pretrain --data "$1"/corpus/*.txt --vocabulary "$here/spm.model" --out "$1/fedge-tiny-q8_0.gguf" \
  --hidden 192 --layers 7 --heads 6 --kv-heads 3 --ffn 512 --context 512 \
  --steps 4200 --batch 16 --length 256 --learning-rate 2e-3 --seed 1 \
  --name "Fedge tiny" --license apache-2.0
