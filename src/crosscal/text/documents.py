"""From raw documents to two parts that never share one: duplicates out, then split by a hash. Standard library only."""

import hashlib
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from crosscal.errors import InputError
from crosscal.text.files import is_path, read_file
from crosscal.text.readers import Document, read
from crosscal.text.registry import SOURCES, check_split, source_named

OWN_SHARE = 0.8
"""Fraction of the documents of your own file, or of a hub set without parts, that goes to calibration."""

NGRAM = 20
SHARED_NGRAMS = 30


def documents(source: str, split: str = "calibration") -> list[str]:
    """The cleaned documents of one part of a source: an embedded name, `hub:<dataset id>` or a file.

    Equal documents count once, and in the embedded sources so do those that share more than 30 runs of 20 words with
    earlier ones, so the two parts never share a document. Raises `InputError` for an unknown source or split, or when
    the part is empty.
    """
    check_split(split)
    if source.startswith("hub:"):
        from crosscal.text.hub import hub_documents

        return hub_documents(source, split)
    if source in SOURCES or not is_path(source):
        return list(_embedded(source_named(source).name)[split])
    path = Path(source).expanduser()
    parts = split_documents((Document(text, text) for text in read_file(path)), OWN_SHARE)
    if not parts[split]:
        raise InputError(
            f"no document of {source} falls into the {split} part ({len(parts['calibration'])} in calibration, "
            f"{len(parts['held_out'])} held out); give more documents (blank lines separate them in a .txt file)"
        )
    return list(parts[split])


@lru_cache(maxsize=16)
def _embedded(name: str) -> dict[str, tuple[str, ...]]:
    return split_documents(read(name), SOURCES[name].share, near_duplicates=True)


def split_documents(
    found: Iterable[Document], share: float, *, near_duplicates: bool = False
) -> dict[str, tuple[str, ...]]:
    """Both parts of a stream of documents.

    A document with a fixed split stays there, any other goes to calibration if the hash of its key, read as a number
    from 0 to 1, is below `share`: adding or removing other documents moves none. Of equal texts the first stays; with
    `near_duplicates` so does the first of those that share more than 30 runs of 20 words (memory grows with the text).

    >>> parts = split_documents((Document(t, t) for t in ["a", "b", "a", "c"]), 0.5)
    >>> sorted(parts["calibration"] + parts["held_out"])
    ['a', 'b', 'c']
    """
    parts: dict[str, list[str]] = {"calibration": [], "held_out": []}
    texts: set[str] = set()
    ngrams: set[int] = set()
    for document in found:
        text = document.text.strip()
        if not text or text in texts:
            continue
        texts.add(text)
        if near_duplicates and document.split is None:
            own = word_ngrams(text)
            if len(own & ngrams) > SHARED_NGRAMS:
                continue
            ngrams |= own
        parts[document.split or _part_of(document.key, share)].append(text)
    return {name: tuple(members) for name, members in parts.items()}


def word_ngrams(text: str, n: int = NGRAM) -> set[int]:
    """Hashes of every run of `n` words, letters and digits only, in lower case.

    >>> len(word_ngrams("one two three", n=2))
    2
    """
    words = re.findall(r"\w+", text.lower())
    return {hash(tuple(words[i : i + n])) for i in range(len(words) - n + 1)}


def _part_of(key: str, share: float) -> str:
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    return "calibration" if number < share else "held_out"
