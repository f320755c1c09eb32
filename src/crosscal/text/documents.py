"""Documents of a source in two parts that never share one: copies out, then split by a hash. Standard library only."""

import hashlib
import os
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal

from crosscal.errors import InputError, suggest
from crosscal.text.fields import _Document
from crosscal.text.hub import HUB_ROLES, _is_known, _read_hub
from crosscal.text.own import _CHAT, SourceReport, _changed_at, _is_json, _is_path, _read_own, _short
from crosscal.text.sources import SOURCES, Source

SPLITS: tuple[str, ...] = ("calibration", "held_out")
SELF = "self"
"""The source of text that the model wrote itself (`crosscal.text.write_text`)."""

OWN_SHARE = 0.8
"""Fraction of the documents of your own file, or of a hub set without parts, that goes to calibration."""

NGRAM = 20
SHARED_NGRAMS = 30
_NEARLY_ALL = 0.8
_EXACT_CHARACTERS = 12_000_000  # about 2 million words; of a longer text, every second, third, ... run is compared
_SIGN = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")  # scripts without spaces

_Parts = dict[str, tuple[_Document, ...]]


def documents(source: str, split: str = "calibration", *, field: str = "", chat: bool = False) -> list[str]:
    """Return the cleaned documents of one part of a source: an embedded name, `hub:<dataset id>` or a file.

    `field` names the field of a file or a hub set that holds the text (`a.b` for nested ones); with `chat` it holds
    turns, of which the text is who said what. Without `field` the rule of `crosscal.text.fields` chooses.

    Equal documents count once, so the two parts never share one. In the embedded sources so do those that share more
    than 30 runs of 20 words with earlier ones. Elsewhere those that share nearly all of their runs count once, and a
    held-out document that shares more than 30 runs with calibration, or half of its own if it is short, is dropped.
    The publisher's parts of known hub sets stay as they are.
    Raises `InputError` for an unknown source or split, or when the part is empty.
    """
    return [document.text for document in _part(_full_name(source, field, chat), split)]


def check_source(source: str, *, field: str = "", chat: bool = False) -> SourceReport | None:
    """Return what is read of a file, None for other sources; raise `InputError` for an unknown name or a bad file.

    Whether a hub set exists is seen when it is read.
    """
    name = _full_name(source, field, chat)
    if name.startswith("hub:"):
        return None
    if name in SOURCES or not _is_path(name):
        _embedded(name)
        return None
    return _parts(name, _changed_at(name))[1]


def domain_of(source: str) -> str:
    """Return the role of a source: "general", "instruction", "biomedical", "legal", "science", "self-written" for
    text that the model wrote, or "own" for yours.

    >>> domain_of("news"), domain_of("hub:FiscalNote/billsum"), domain_of("self"), domain_of("notes.jsonl")
    ('general', 'legal', 'self-written', 'own')
    """
    if source in SOURCES:
        return SOURCES[source].role
    if source == SELF:
        return "self-written"
    dataset = source.removeprefix("hub:").split("#")[0].split(":")[0]
    return HUB_ROLES.get(dataset, "own") if source.startswith("hub:") else "own"


def word_ngrams(text: str, n: int = NGRAM, every: int = 1) -> set[int]:
    """Return hashes of every run of `n` words, letters and digits only, in lower case.

    Signs of scripts that have no spaces count as words. With `every`, only the one in `every` runs that its hash
    selects is returned: the same ones wherever they stand.

    >>> len(word_ngrams("one two three", n=2))
    2
    """
    # Numbers, because hashes of strings differ from process to process.
    words = [zlib.crc32(word.encode()) for word in re.findall(r"\w+", _SIGN.sub(r" \g<0> ", text.lower()))]
    hashes = (hash(tuple(words[i : i + n])) for i in range(len(words) - n + 1))
    return set(hashes) if every == 1 else {value for value in hashes if value % every == 0}


def with_field(source: str, field: str = "", chat: bool = False) -> str:
    """Return the name of a source with the field that is read; a source without fields keeps its name.

    >>> with_field("notes.jsonl", "body"), with_field("c4", "body"), with_field("log.jsonl", chat=True)
    ('notes.jsonl#body', 'c4', 'log.jsonl#chat:')
    """
    hub = source.startswith("hub:") and "#" not in source and not _is_known(source)
    takes = hub or (not source.startswith("hub:") and _is_json(source))
    return f"{source}#{_CHAT if chat else ''}{field}" if takes and (field or chat) else source


def _full_name(source: str | os.PathLike, field: str, chat: bool) -> str:
    """The name of a source with its field; raises `InputError` for what is no name, and for a source without fields."""
    if not isinstance(source, (str, os.PathLike)):
        raise InputError(f"source is {source!r}; give the name of a text, such as 'c4', or the path of a file")
    name = with_field(os.fspath(source), field, chat)
    if (field or chat) and name == os.fspath(source):
        raise InputError(
            f"'{_short(name)}' has no fields to choose from; leave field and chat out, or give a JSON file"
        )
    return name


def _part(name: str, split: str) -> tuple[_Document, ...]:
    """The documents of one part; raises `InputError` when there is none."""
    if split not in SPLITS:
        raise InputError(f"there is no split '{split}'{suggest(split, list(SPLITS))} (use calibration or held_out)")
    parts, report = _parts(name, _changed_at(name))
    if parts[split]:
        return parts[split]
    copies = report.dropped.get("near-duplicate", 0)
    told = f", {copies} more are near-duplicates of other documents" if copies else ""
    raise InputError(
        f"no document of {name} falls into the {split} part ({len(parts['calibration'])} in calibration, "
        f"{len(parts['held_out'])} held out{told}); give more and different ones (blank lines part them in a .txt file)"
    )


@lru_cache(maxsize=16)
def _parts(name: str, changed: int) -> tuple[_Parts, SourceReport]:
    """Both parts of a source and what was read; a file is read again once it has `changed`."""
    if name.startswith("hub:"):
        members, report = _read_hub(name)
        return _split(members, OWN_SHARE, report, copies="none" if _is_known(name) else "across")
    if name in SOURCES or not _is_path(name):
        source = _embedded(name)
        members = list(source.read())
        return _split(
            members, source.share, SourceReport(name, source.title, len(members), len(members)), copies="among"
        )
    members, report = _read_own(name)
    return _split(members, OWN_SHARE, report, copies="across")


def _embedded(name: str) -> Source:
    """The embedded source, or `InputError` that lists what there is."""
    if name == SELF:
        raise InputError(
            "text that a model writes itself needs the model; use crosscal.text.write_text(load_model(...), ...)"
        )
    if name not in SOURCES:
        # A text in the place of a name is near none.
        near = suggest(name, list(SOURCES)) if _short(name) == name else ""
        raise InputError(
            f"there is no text source '{_short(name)}'{near} (embedded: {', '.join(SOURCES)}; or hub:<dataset id>, or "
            "a path to a .txt or .jsonl file)"
        )
    return SOURCES[name]


def _split(
    members: Sequence[_Document], share: float, report: SourceReport, copies: Literal["none", "among", "across"]
) -> tuple[_Parts, SourceReport]:
    """Both parts of a list of documents, and the report with what was dropped.

    A document with a fixed split stays there, any other goes to calibration if the hash of its key, read as a number
    from 0 to 1, is below `share`: adding or removing other documents moves none. Of equal texts the first stays, and
    of near-duplicates: `among` the documents without a fixed split, those that share more than 30 runs of 20 words with
    earlier ones; `across`, those that share nearly all of their runs, and then every held-out document that shares
    more than 30, or half of its own, with calibration ones.
    """
    parts: dict[str, list[_Document]] = {name: [] for name in SPLITS}
    seen: dict[str, set[int]] = {name: set() for name in SPLITS}
    dropped = Counter({"empty": report.rows - report.documents})
    every = 1 + sum(len(document.text) for document in members) // _EXACT_CHARACTERS
    texts: set[str] = set()
    for document in members:
        text = document.text.strip()
        if not text or text in texts:
            dropped["equal" if text else "empty"] += 1
            continue
        texts.add(text)
        part = document.split or _part_of(document.key, share)
        if copies == "across" or (copies == "among" and document.split is None):
            own = _runs(text, every)
            shared = len(own & seen["calibration"] | own & seen["held_out"])
            if shared > SHARED_NGRAMS if copies == "among" else shared >= _NEARLY_ALL * len(own):
                dropped["near-duplicate"] += 1
                continue
            seen[part] |= own
        parts[part].append(replace(document, text=text))
    if copies == "across":
        kept = _without_copies(parts["held_out"], seen["calibration"], every)
        dropped["near-duplicate"] += len(parts["held_out"]) - len(kept)
        parts["held_out"] = kept
    counts = {name: len(part) for name, part in parts.items()}
    report = replace(report, dropped=dict(+dropped), parts=counts)
    return {name: tuple(part) for name, part in parts.items()}, report


def _without_copies(held_out: list[_Document], seen: set[int], every: int) -> list[_Document]:
    """The held-out documents that share little with the runs `seen` in calibration, and with one another."""
    kept = []
    for document in held_out:
        own = _runs(document.text, every)
        if len(own & seen) <= min(SHARED_NGRAMS / every, len(own) / 2):
            kept.append(document)
            seen |= own
    return kept


def _runs(text: str, every: int) -> set[int]:
    """The runs of words of a text; one too short for any is a single run, whatever its case and spaces."""
    return word_ngrams(text, NGRAM, every) or {zlib.crc32(" ".join(text.lower().split()).encode())}


def _part_of(key: str, share: float) -> str:
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    return "calibration" if number < share else "held_out"
