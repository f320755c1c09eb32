"""Text files of one's own: which file and field a name means, how bytes become rows, and what was read of them.

A name is `FILE`, `FILE#FIELD`, or for chats `FILE#chat:` and `FILE#chat:FIELD`. Standard library only.
"""

import gzip
import json
import os
import re
import zlib
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from crosscal.errors import InputError
from crosscal.text.fields import _Document, _reading_of

_PLAIN = (".txt", ".md")
_JSON = (".jsonl", ".ndjson", ".json")
_CHAT = "chat:"
_KINDS = "a .txt, .jsonl or .json file, or one of these with .gz"
_MARKS = {BOM_UTF8: "utf-8", BOM_UTF32_LE: "utf-32-le", BOM_UTF32_BE: "utf-32-be"}
_MARKS |= {BOM_UTF16_LE: "utf-16-le", BOM_UTF16_BE: "utf-16-be"}  # those of UTF-32 begin with these, so they come first
# Lines without ink part documents: spaces of all kinds, and characters of no width.
_BLANK_LINES = re.compile("\n(?:[^\\S\n]|[\u200b\u200c\u200d\u2060\ufeff])*\n")
_LINE_ENDS = str.maketrans({"\x85": "\n", "\u2028": "\n", "\u2029": "\n\n"})


@dataclass(frozen=True)
class SourceReport:
    """What was read of a source: `documents` of `rows` have text in the fields that `what` names.

    `dropped` counts documents by reason, `parts` those that are left by part. `together` counts near-copies that follow
    the first of them into its part, `shared` held-out documents whose text is also in calibration, as all are alike.
    `unknown` is the share of tokens that the tokenizer does not know, None before there is one. `str` gives one line.

    >>> parts = {"calibration": 30, "held_out": 8}
    >>> print(SourceReport("a.jsonl", "field 'body'", 42, 40, "UTF-8", {"equal": 2}, parts))
    a.jsonl: 40 of 42 documents: field 'body', UTF-8; dropped 2 equal; 30 for calibration, 8 held out
    """

    source: str
    what: str
    rows: int
    documents: int
    encoding: str = ""
    dropped: dict[str, int] = field(default_factory=dict)
    parts: dict[str, int] = field(default_factory=dict)
    together: int = 0
    shared: int = 0
    unknown: float | None = None

    def __str__(self) -> str:
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items() if count)
        pieces = [
            f"{self.documents:,} of {self.rows:,} documents: {', '.join(filter(None, (self.what, self.encoding)))}",
            f"dropped {dropped}" if dropped else "",
            f"{self.parts.get('calibration', 0):,} for calibration, {self.parts.get('held_out', 0):,} held out",
            f"{self.together:,} near-copies in the part of their first" if self.together else "",
            f"{self.shared:,} held-out documents are near-copies of calibration ones" if self.shared else "",
            f"{100 * self.unknown:.1f} % of the tokens unknown" if self.unknown is not None else "",
        ]
        return f"{self.source}: {'; '.join(filter(None, pieces))}"


def _is_path(source: str) -> bool:
    """Whether a name is meant as a file: it has a separator or one of the endings that are read, or is one."""
    named = _ending(_file_of(source)[0].name) in (*_PLAIN, *_JSON)
    return named or "/" in source or os.sep in source or _is_file(source)


def _is_json(source: str) -> bool:
    """Whether a name is that of a file with fields, none of them named yet."""
    path, field, chat = _file_of(source)
    return _ending(path.name) in _JSON and not field and not chat


def _file_of(source: str) -> tuple[Path, str, bool]:
    """The file that a name means, the field ("" for none) and whether it is read as a chat."""
    name, mark, rest = source.rpartition("#")
    if not mark or _is_file(source):
        name, rest = source, ""
    return Path(os.path.expanduser(name)), rest.removeprefix(_CHAT), rest.startswith(_CHAT)


def _changed_at(source: str) -> int:
    """When a file was last changed (0 for no file), so that an edited one is read again."""
    try:
        return _file_of(source)[0].stat().st_mtime_ns
    except (OSError, ValueError):
        return 0


def _short(source: str) -> str:
    """A name for a sentence: a text in the place of a name is cut."""
    line = " ".join(source.split())
    return line if len(line) <= 80 else f"{line[:77]}..."


def _read_own(source: str) -> tuple[list[_Document], SourceReport]:
    """The documents of a file, in order, and what was read."""
    path, name, chat = _file_of(source)
    text, encoding = _decoded(path)
    if _ending(path.name) in _PLAIN:
        if name or chat:
            raise InputError(f"{path} is plain text, which has no fields; leave --field and --chat out")
        pieces = [piece.strip() for piece in _BLANK_LINES.split(text.translate(_LINE_ENDS))]
        rows: list = [piece for piece in pieces if piece]
        what, documents = "parted by blank lines", [_Document(row, row) for row in rows]
    else:
        rows = _json_rows(text, path)
        reading = _reading_of(rows, str(path), name, chat)
        what = reading.what
        documents = [document for row in rows if (document := reading.document(row)) is not None]
    if not documents:
        raise InputError(f"{path} holds no text; give a file with at least two documents")
    return documents, SourceReport(path.name, what, len(rows), len(documents), encoding)


def _ending(name: str) -> str:
    """The ending that says how a file is read, `.gz` aside."""
    return Path(name.lower().removesuffix(".gz")).suffix


def _is_file(source: str) -> bool:
    return os.path.isfile(os.path.expanduser(source))  # False, too, where the file system refuses to answer


def _decoded(path: Path) -> tuple[str, str]:
    """The text of a file with plain line ends, and the name of its encoding."""
    data = _bytes_of(path)
    mark, encoding = next(((mark, name) for mark, name in _MARKS.items() if data.startswith(mark)), (b"", "utf-8"))
    name = encoding.upper().removesuffix("-LE").removesuffix("-BE")
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not {name} text (byte {error.start}); save it as UTF-8") from None
    if "\0" in text:
        raise InputError(f"{path} holds zero bytes: it is UTF-16 without a mark, or no text; save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n"), name


def _bytes_of(path: Path) -> bytes:
    """What a file holds, unpacked; raises `InputError` for whatever is no readable file with a known ending."""
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder; give one file: its texts as JSON lines, or parted by blank lines")
        path.stat()
        if _ending(path.name) not in (*_PLAIN, *_JSON):
            lines = "JSON lines (in pandas: table.to_json('notes.jsonl', orient='records', lines=True))"
            raise InputError(f"{path} is not {_KINDS}; give text with blank lines between documents, or {lines}")
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix.lower() == ".gz" else data
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"there is no file {_short(str(path))}; give the path of {_KINDS}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be unpacked ({error}); pack it again with gzip") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {_short(str(path))} ({reason}); give the path of a file you may read") from None


def _read_json_lines(path: Path) -> Iterator[dict]:
    """Yield one object a line, from a plain or gzip-compressed file."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        yield from (json.loads(line) for line in file if line.strip())


def _json_rows(text: str, path: Path) -> list:
    """The rows of JSON lines, of a list in one piece, or of the one list that an object holds."""
    whole = None
    if text.lstrip().startswith("[") or _ending(path.name) == ".json":
        # Else these are JSON lines under another name, or the text is damaged, and then a line tells where.
        with suppress(ValueError, RecursionError):
            whole = json.loads(text)
    if isinstance(whole, dict):
        lists = [value for value in whole.values() if isinstance(value, list)]
        if len(lists) != 1:
            raise InputError(f"{path} holds one object; give a list of objects, or one object a line")
        return lists[0]
    return whole if isinstance(whole, list) else list(_json_lines(text, path))


def _json_lines(text: str, path: Path) -> Iterator[object]:
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            if line.strip():
                yield json.loads(line)
        except RecursionError:
            raise InputError(f"line {number} of {path} is nested too deeply; write one flat object a line") from None
        except ValueError as error:
            raise InputError(f"line {number} of {path} is no JSON ({error}); write one object a line") from None
