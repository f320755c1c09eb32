"""Documents of a source in two parts that never share one: copies out, then split by a hash. Standard library only."""

import hashlib
import logging
import os
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal

from crosscal.errors import InputError, suggest
from crosscal.text.fields import _Document
from crosscal.text.hub import HUB_ROLES, _is_known, _read_hub
from crosscal.text.own import _CHAT, SourceReport, _changed_at, _is_json, _is_path, _read_own, _short
from crosscal.text.sources import SOURCES, _Source

SPLITS: tuple[str, ...] = ("calibration", "held_out")
SELF = "self"
"""The source of text that the model wrote itself (`crosscal.text.write_text`)."""

OWN_SHARE = 0.8
"""Fraction of the documents of your own file, or of a hub set without parts, that goes to calibration."""

NGRAM = 20
SHARED_NGRAMS = 30
_NEARLY_ALL = 0.8
_RECURS, _RECURS_LEAST = 32, 4  # a run in more documents than these (and a twentieth of all) recurs, as a footer does
_EXACT_CHARACTERS = 12_000_000  # about 2 million words; of a longer text, every second, third, ... run is compared
_SIGN = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")  # scripts without spaces

log = logging.getLogger(__name__)

_Parts = dict[str, tuple[_Document, ...]]


def documents(source: str, split: str = "calibration", *, field: str = "", chat: bool = False) -> list[str]:
    """Return the cleaned documents of one part of a source: an embedded name, `hub:<dataset id>` or a file.

    `field` names the field of a file or a hub set that holds the text (`a.b` for nested ones); with `chat` it holds
    turns, of which the text is who said what. Without `field` the rule of `crosscal.text.fields` chooses.

    Equal documents count once, so the two parts never share one. In the embedded sources so do those that share more
    than 30 runs of 20 words with earlier ones. Elsewhere near-copies go to one part together, and a calibration
    document that shares more than 30 runs with a held-out one, or half of that one's, is dropped.
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


def _with_field(source: str, field: str = "", chat: bool = False) -> str:
    """The name of a source with the field that is read, as in `log.jsonl#chat:turns`; one without fields keeps it."""
    hub = source.startswith("hub:") and "#" not in source and not _is_known(source)
    takes = hub or (not source.startswith("hub:") and _is_json(source))
    return f"{source}#{_CHAT if chat else ''}{field}" if takes and (field or chat) else source


def _full_name(source: str | os.PathLike, field: str, chat: bool) -> str:
    """The name of a source with its field; raises `InputError` for what is no name, and for a source without fields."""
    if not isinstance(source, (str, os.PathLike)):
        raise InputError(f"source is {source!r}; give the name of a text, such as 'c4', or the path of a file")
    name = _with_field(os.fspath(source), field, chat)
    if (field or chat) and name == os.fspath(source):
        raise InputError(
            f"'{_short(name)}' has no fields to choose from; leave field and chat out, or give a JSON file"
        )
    return name


def _part(name: str, split: str) -> tuple[_Document, ...]:
    """The documents of one part; raises `InputError` when there is none."""
    if split not in SPLITS:
        raise InputError(f"there is no split '{split}'{suggest(split, list(SPLITS))} (use calibration or held_out)")
    parts, _ = _parts(name, _changed_at(name))
    if not parts[split]:
        raise InputError(
            f"no document of {name} falls into the {split} part ({len(parts['calibration'])} in calibration, "
            f"{len(parts['held_out'])} held out); give more and different ones (blank lines part them in a .txt file)"
        )
    return parts[split]


@lru_cache(maxsize=16)
def _parts(name: str, changed: int) -> tuple[_Parts, SourceReport]:
    """Both parts of a source and what was read; a file is read again once it has `changed`."""
    if name.startswith("hub:"):
        members, report = _read_hub(name)
        return _split(members, OWN_SHARE, report, copies="none" if _is_known(name) else "across")
    if name in SOURCES or not _is_path(name):
        source = _embedded(name)
        members = list(source.read())
        report = SourceReport(name, source.title, len(members), len(members))
        return _split(members, source.share, report, copies="among")
    members, report = _read_own(name)
    return _split(members, OWN_SHARE, report, copies="across")


def _embedded(name: str) -> _Source:
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
    """Both parts of a list of documents, and the report with what was dropped. Of equal texts the first stays.

    A document with a fixed split stays there, any other goes to calibration if the hash of its key, read as a number
    from 0 to 1, is below `share`. With `copies` "among", a document without a fixed split that shares more than 30 runs
    of 20 words with earlier ones is dropped; with "across", see `_apart`.
    """
    dropped = Counter({"empty": report.rows - report.documents})
    kept: dict[str, _Document] = {}
    seen: set[int] = set()
    for document in members:
        text = document.text.strip()
        if not text or text in kept:
            dropped["equal" if text else "empty"] += 1
            continue
        if copies == "among" and document.split is None:
            own = word_ngrams(text)
            if len(own & seen) > SHARED_NGRAMS:
                dropped["near-duplicate"] += 1
                continue
            seen |= own
        kept[text] = replace(document, text=text)
    texts, together, shared = list(kept.values()), 0, 0
    if copies == "across":
        sides, together, shared = _apart(texts, share)
    else:
        sides = _sides(texts, share)
    parts = {name: tuple(text for text, side in zip(texts, sides, strict=True) if side == name) for name in SPLITS}
    dropped["near-duplicate"] += sides.count("")
    counts = {name: len(part) for name, part in parts.items()}
    if shared:
        told = f"{shared} of {counts['held_out']} held-out documents are near-copies of calibration ones"
        log.warning(f"{report.source}: {told}, so held-out scores flatter; give texts that differ more")
    return parts, replace(report, dropped=dict(+dropped), parts=counts, together=together, shared=shared)


def _apart(documents: list[_Document], share: float) -> tuple[list[str], int, int]:
    """Part documents so that no text stands on both sides.

    Documents that share at least 80 % of their runs of 20 words with one another are near-copies and go together, to
    where the first of them falls. Then calibration documents go that share more than 30 runs, or half of its own, with
    one held-out document. Runs that recur in many documents, as a footer does, tell of no copy. Where nothing
    would be left of one part, the documents are so much alike that each goes where it falls, and that is said.

    Returns the part of each document ("" for none), how many follow a near-copy, and how many held-out ones leak.
    """
    every = 1 + sum(len(document.text) for document in documents) // _EXACT_CHARACTERS
    runs = [_runs(document.text, every) for document in documents]
    homes = _first_copies(runs)
    firsts = sorted(set(homes))
    side_of = dict(zip(firsts, _sides([documents[home] for home in firsts], share), strict=True))
    sides = [document.split or side_of[home] for document, home in zip(documents, homes, strict=True)]
    leaks, _ = _leaks(runs, homes, sides, every)
    clean = ["" if side == "calibration" and home in leaks else side for side, home in zip(sides, homes, strict=True)]
    if len(documents) < len(SPLITS) or set(SPLITS) <= set(clean):
        kept = [home for home, side in zip(homes, clean, strict=True) if side]
        return clean, len(kept) - len(set(kept)), 0
    sides = _sides(documents, share)
    return sides, 0, _leaks(runs, homes, sides, every)[1]


def _first_copies(runs: list[set[int]]) -> list[int]:
    """The number of the first near-copy of each document, its own if there is none before it."""
    homes = list(range(len(runs)))
    holders: dict[int, list[int]] = defaultdict(list)
    for number, own in enumerate(runs):
        shared = Counter(other for run in own & holders.keys() for other in holders[run])
        near = {_home(homes, i) for i, n in shared.items() if n >= _NEARLY_ALL * max(len(own), len(runs[i]))}
        for other in (*near, number):
            homes[other] = min(near, default=number)
        for run in own:
            if len(holders[run]) < _RECURS:
                holders[run].append(number)
    return [_home(homes, number) for number in homes]


def _home(homes: list[int], number: int) -> int:
    while homes[number] != number:
        number = homes[number]
    return number


def _leaks(runs: list[set[int]], homes: list[int], sides: list[str], every: int) -> tuple[set[int], int]:
    """The first copies of calibration documents that share text with held-out ones, and how many these are."""
    held_out = set().union(*(own for own, side in zip(runs, sides, strict=True) if side == "held_out"))
    holders: dict[int, set[int]] = defaultdict(set)
    for own, home in zip(runs, homes, strict=True):
        for run in own & held_out:
            holders[run].add(home)
    most = min(_RECURS, _RECURS_LEAST + len(set(homes)) // 20)
    calibration = {home for home, side in zip(homes, sides, strict=True) if side == "calibration"}
    leaks, n_held_out = set(), 0
    for own, side in zip(runs, sides, strict=True):
        if side == "held_out":
            rare = [holders[run] for run in own if len(holders[run]) <= most]
            shared = Counter(home for having in rare for home in having & calibration)
            found = {home for home, n in shared.items() if n > min(SHARED_NGRAMS / every, len(rare) / 2)}
            leaks |= found
            n_held_out += bool(found)
    return leaks, n_held_out


def _runs(text: str, every: int) -> set[int]:
    """The runs of words of a text; one too short for any is a single run, whatever its case and spaces."""
    return word_ngrams(text, NGRAM, every) or {zlib.crc32(" ".join(text.lower().split()).encode())}


def _sides(documents: Sequence[_Document], share: float) -> list[str]:
    """The part of each document, fixed or by the hash of its key; of two or more, at least one is on either side."""
    numbers = [int.from_bytes(hashlib.sha256(d.key.encode()).digest()[:8], "big") / 2**64 for d in documents]
    sides = ["calibration" if number < share else "held_out" for number in numbers]
    if len(set(sides)) == 1 < len(sides):
        least = sides[0] == "held_out"
        sides[numbers.index(min(numbers) if least else max(numbers))] = "calibration" if least else "held_out"
    return [document.split or side for document, side in zip(documents, sides, strict=True)]
