#!/usr/bin/env python3
"""Draws the training text of the tokenizer from the corpus: one sentence or so a line.

Usage: tokenizer_input.py CORPUS OUT

Every source gives at most 4 MB, in documents spread evenly over it, so that the two largest (a
dictionary full of abbreviations, an epic full of Sanskrit names) do not take the vocabulary.
"""

import os
import re
import sys

MAX_SOURCE_BYTES = 4_000_000
MAX_LINE_BYTES = 2_000  # spm_train skips what is longer than its --max_sentence_length


def lines(document):
    for line in document.split("\n"):
        while len(line.encode("utf-8")) > MAX_LINE_BYTES:
            cut = line.rfind(" ", 1, MAX_LINE_BYTES // 4)
            if cut < 0:
                break
            yield line[:cut]
            line = line[cut + 1:]
        if line.strip():
            yield line


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    corpus, out = sys.argv[1:]
    with open(out, "w", encoding="utf-8") as f:
        for name in sorted(os.listdir(corpus)):
            if not name.endswith(".txt"):
                continue
            with open(os.path.join(corpus, name), encoding="utf-8") as source:
                documents = re.split(r"\n\f\n", source.read())
            size = sum(len(d.encode("utf-8")) for d in documents)
            step = max(1.0, size / MAX_SOURCE_BYTES)
            for i in range(int(len(documents) / step)):
                for line in lines(documents[int(i * step)]):
                    f.write(line + "\n")


if __name__ == "__main__":
    main()
