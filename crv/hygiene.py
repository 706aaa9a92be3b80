"""Which problems are not worth a call: repeated ones, ones of an evaluation set, other scripts, odd lengths.

A pass over the input before any call, in input order (the first of equal problems stays), with its tables on disk: the
memory does not grow with the input. Every driver of a run comes to the same verdicts.
"""

import hashlib
import re
import sqlite3
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from crv.options import HygieneOptions
from crv.problems import Problem

# Scripts written without spaces: each character is a word.
_UNSPACED = (
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
# Words of any script, numbers, LaTeX commands and single symbols; dollars and spaces say nothing.
_TOKENS = re.compile(rf"\\[a-z]+|{_UNSPACED}|(?:(?!{_UNSPACED})[^\W\d_])+|\d+|[^\s\w$]")
_SAME_COMMANDS = re.compile(r"\\[dt](?=(?:frac|binom)(?![a-z]))")
# NFKC would make x² the same as x2.
_RAISED = str.maketrans({c: f"^{d}" for c, d in zip("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789", strict=True)})
_LEAST_RUN = 3  # tokens of an evaluation question that is looked for inside a problem
_COMMANDS = re.compile(r"\\[A-Za-z]+|\[asy\].*?\[/asy\]", re.S)
_SHINGLE, _PERMUTATIONS, _BANDS = 5, 128, 16
_PRIME = np.uint64((1 << 61) - 1)
_TEMPLATE_NGRAM = 8


class Decontaminator:
    """Finds problems that overlap with evaluation problems: by shared n-grams of tokens, or by a shared template.

    Lexical: one common `ngram` is enough (as open-r1 does with words; symbols are tokens here, since a formula is what
    problems share); a shorter evaluation question is looked for as a whole, its last punctuation aside. Template:
    numbers masked, and at least `template_share` of the tokens lie in common 8-grams; it finds the same question with
    other numbers, and more that is innocent.
    """

    def __init__(self, evaluation: Iterable[str], ngram: int = 8, template_share: float = 0.0):
        self.ngram, self.template_share = ngram, template_share
        self._lexical: set[int] = set()
        self._template: set[int] = set()
        self._runs: dict[int, set[int]] = {}  # by length: whole questions shorter than `ngram`
        for text in evaluation:
            words = tokens(text)
            run = _without_last_marks(words)
            if len(run) < ngram:
                self._runs.setdefault(max(len(run), _LEAST_RUN), set()).update(_grams(run, ngram))
            self._lexical.update(_grams(words, ngram))
            if template_share:
                self._template.update(_grams(_masked(words), _TEMPLATE_NGRAM))

    def overlap(self, text: str) -> str:
        """lexical, template, or "" where the problem is clean."""
        words = tokens(text)
        if any(gram in self._lexical for gram in _grams(words, self.ngram)):
            return "lexical"
        run = _without_last_marks(words)
        if any(gram in runs for length, runs in self._runs.items() for gram in _grams(run, length)):
            return "lexical"
        if self.template_share:
            hits = [gram in self._template for gram in _grams(_masked(words), _TEMPLATE_NGRAM)]
            covered = np.zeros(max(len(words), 1), bool)
            for place in np.flatnonzero(hits):
                covered[place : place + _TEMPLATE_NGRAM] = True
            if any(hits) and covered.mean() >= self.template_share:
                return "template"
        return ""


class Hygiene:
    """The verdicts of one pass; `scratch` is a file for its tables, removed by `close`."""

    def __init__(self, options: HygieneOptions, evaluation: Mapping[str, Iterable[str]], scratch: Path):
        self.options = options
        self._evaluation = {
            name: Decontaminator(texts, options.ngram, options.template_share) for name, texts in evaluation.items()
        }
        self._scratch = scratch
        scratch.unlink(missing_ok=True)
        self._db = sqlite3.connect(scratch, isolation_level=None)
        self._db.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
            "CREATE TABLE texts (digest BLOB PRIMARY KEY) WITHOUT ROWID;"
            "CREATE TABLE bands (hash INTEGER, row INTEGER, PRIMARY KEY (hash, row)) WITHOUT ROWID;"
            "CREATE TABLE signatures (row INTEGER PRIMARY KEY, signature BLOB); BEGIN"
        )
        random = np.random.default_rng(0)
        self._a = random.integers(1, int(_PRIME), _PERMUTATIONS, np.uint64)
        self._b = random.integers(0, int(_PRIME), _PERMUTATIONS, np.uint64)

    def close(self) -> None:
        """Removes the tables."""
        self._db.close()
        self._scratch.unlink(missing_ok=True)

    def reason(self, problem: Problem) -> str:
        """Why the problem is dropped, or "" where it stays (it then counts for the ones after it)."""
        o, text = self.options, problem.problem
        if len(text) < o.min_characters:
            return "too_short"
        if o.max_characters and len(text) > o.max_characters:
            return "too_long"
        if o.latin_share and latin_share(text) < o.latin_share:
            return "other_script"
        for name, decontaminator in self._evaluation.items():
            if overlap := decontaminator.overlap(text):
                return f"contaminated_{overlap}_{name}"
        words = tokens(text)
        if o.duplicates and self._is_known(words):
            return "duplicate"
        if o.near_duplicates and self._is_near(words):
            return "near_duplicate"
        return ""

    def _is_known(self, words: list[str]) -> bool:
        digest = hashlib.sha256(" ".join(words).encode()).digest()[:16]
        return not self._db.execute("INSERT OR IGNORE INTO texts VALUES (?)", (digest,)).rowcount

    def _is_near(self, words: list[str]) -> bool:
        """MinHash over 5-gram shingles; candidates share one of 16 bands, and agree in enough of 128 permutations."""
        signature = self._signature(words)
        width = _PERMUTATIONS // _BANDS
        hashes = [
            _hash64(bytes([band]) + signature[band * width : (band + 1) * width].tobytes()) for band in range(_BANDS)
        ]
        marks = ",".join("?" * _BANDS)
        candidates = self._db.execute(f"SELECT DISTINCT row FROM bands WHERE hash IN ({marks})", hashes).fetchall()
        for (row,) in candidates:
            (other,) = self._db.execute("SELECT signature FROM signatures WHERE row=?", (row,)).fetchone()
            if (np.frombuffer(other, np.uint64) == signature).mean() >= self.options.near_duplicates:
                return True
        row = self._db.execute("INSERT INTO signatures (signature) VALUES (?)", (signature.tobytes(),)).lastrowid
        self._db.executemany("INSERT OR IGNORE INTO bands VALUES (?,?)", [(h, row) for h in hashes])
        return False

    def _signature(self, words: list[str]) -> np.ndarray:
        shingles = np.array([g & 0xFFFFFFFF for g in _grams(words, _SHINGLE)] or [0], np.uint64)
        # 32-bit shingles times 61-bit factors wrap around 2**64: still a hash, and the minimum is all that counts.
        return ((shingles[:, None] * self._a + self._b) % _PRIME).min(axis=0)


def tokens(text: str) -> list[str]:
    """Lower-case words, numbers, LaTeX commands and symbols of a problem, after NFKC; \\dfrac is \\frac."""
    text = unicodedata.normalize("NFKC", text.translate(_RAISED)).lower()
    return _TOKENS.findall(_SAME_COMMANDS.sub(r"\\", text))


def latin_share(text: str) -> float:
    """The share of Latin letters among the letters outside LaTeX commands; 1 where there are none."""
    letters = [c for c in _COMMANDS.sub(" ", text) if c.isalpha()]
    return sum(c < "\u0250" for c in letters) / len(letters) if letters else 1.0


def _without_last_marks(words: list[str]) -> list[str]:
    """The words without punctuation at their end."""
    end = len(words)
    while end and words[end - 1] in ".?!:;,。？！：；，؟":
        end -= 1
    return words[:end]


def _masked(words: list[str]) -> list[str]:
    return ["#" if word.isdigit() else word for word in words]


def _grams(words: list[str], n: int) -> list[int]:
    """A 64-bit hash of each n-gram; a shorter text is one gram of its own length."""
    if not words:
        return []
    return [_hash64(" ".join(words[i : i + n]).encode()) for i in range(max(1, len(words) - n + 1))]


def _hash64(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big", signed=True)
