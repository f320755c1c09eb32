"""How the rows of a file or a data set become documents: one rule, whose outcome is said. Standard library only.

The text of a row is, in this order,

1. the field that was asked for: `a.b` looks into nested objects, and lists are joined by blank lines;
2. with `chat`, the turns in `messages`, in `conversations`, in a prompt and its completion, or in the only other field
   that holds turns;
3. the field `text`;
4. an instruction and its answer, or a prompt and its completion, joined;
5. the field that holds the most text. Ids, addresses, origins and dates never count, nor do values without words.

From 2 on, a field counts only if half of the rows or more have it. Rows of turns that nobody asked to read as a chat,
and rows without any such field, are refused by a sentence that names their fields.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, NamedTuple

from crosscal.errors import InputError

_Split = Literal["calibration", "held_out"]

_HEADS = ("instruction", "prompt", "question", "query", "inputs", "input")
_CONTEXTS = ("input", "context")
_ANSWERS = ("output", "completion", "response", "answer", "targets", "target", "chosen")
_NAMED = ("text", *_HEADS, *_CONTEXTS, *_ANSWERS)
_CHATS = (("messages",), ("conversations",), ("prompt", "completion"), ("prompt", "chosen"))
_SPEAKERS = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "observation": "tool"}
_SAMPLE = 2_000  # rows that decide
_DEPTH = 6  # nested objects and lists that are looked into
_SHOWN = 12  # fields that a sentence names
# The last part of a name that says where a row comes from, not what it says.
_ORIGIN = re.compile(
    r"(?:^|[_\- ])(?:ids?|uuid|guid|key|index|ur[il]s?|links?|href|source|origin|path|file|(?:file|user)?name|date|time"
    r"|timestamp|\w+_at|author|user|lang|language|licen[cs]e|hash|sha\d*|md5|doi|label|split|type|version"
    r"|rejected)$"
    r"|(?<=[a-z])(?:I[dD]|U[rR][lLiI])$",
    re.IGNORECASE,
)
_TURNS = re.compile(r"\s*\[\s*\{")  # turns that a table holds as a string
_ADDRESS = re.compile(r"\s*\w[\w+.-]*://\S*\s*")
_WORDS = re.compile(r"[^\W\d_]\W*\s\W*\w|[^\W\d_a-zA-Z]{4}")  # two words, or a script that needs no spaces
_NO_TEXT = re.compile("[\ud800-\udfff\0]")


@dataclass(frozen=True)
class _Document:
    """A text; documents with the same `key` land in the same part, and `split` fixes the part where it is given.

    Of a chat, `text` holds who said what, and `turns` what a chat template takes: role and content of each turn.
    """

    text: str
    key: str
    split: _Split | None = None
    turns: tuple[dict, ...] = ()


class _Reading(NamedTuple):
    """How the rows of one source are read: `what` names the fields, `document` is None for a row without text."""

    what: str
    document: Callable[[object], _Document | None]


def _whole_text(text: str) -> str:
    """Return a text that every tokenizer takes: halves of surrogate pairs and zero bytes become U+FFFD."""
    if not _NO_TEXT.search(text):
        return text
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _instruction_text(instruction: str, given: str, output: str) -> str:
    """Return an instruction, its optional input and its answer as one plain text, the same for every tokenizer."""
    parts = [("Instruction", instruction), ("Input", given), ("Response", output)]
    return "\n\n".join(f"### {title}:\n{text.strip()}" for title, text in parts if text.strip())


def _reading_of(rows: Sequence[object], where: str, field: str = "", chat: bool = False) -> _Reading:
    """Decide how rows are read, by the rule above; a row that is a string is its own text."""
    if field and not chat and any(_text_at(row, field) for row in rows):
        return _plain([field])
    if field:
        if not any(_turns(_value_at(row, field)) for row in rows):
            raise InputError(f"{where} has no {'chat' if chat else 'text'} in a field '{field}' {_choice(rows)}")
        if not chat:
            raise InputError(f"field '{field}' of {where} holds chats; give --chat too (in Python chat=True)")
        return _chat([field])
    rows = rows[:: len(rows) // _SAMPLE + 1]
    counts = Counter(name for row in rows for name in _turn_fields(row))
    turns = [name for name, count in counts.items() if 2 * count >= len(rows)]
    if chat:
        usual = [[f for name in names for f in turns if f.rpartition(".")[2] == name] for names in _CHATS]
        fields = next((f for f, names in zip(usual, _CHATS, strict=True) if len(f) == len(names)), turns)
        if not fields or (fields is turns and len(turns) > 1):
            several = f"has several chats, {_quoted(turns)}" if turns else "holds no chats, lists of turns with roles"
            raise InputError(f"{where} {several}; name the field with --field NAME {_choice(rows)}")
        return _chat(fields)
    if 2 * sum(isinstance(row, str) for row in rows) >= len(rows):
        return _plain([])
    sizes = _sizes(rows)
    called = {name.lower(): name for name in reversed(sizes)}
    if "text" in called:
        return _plain([called["text"]])
    if turns:
        raise InputError(
            f"{where} holds chats ({_quoted(turns)}) and no plain text; give --chat (in Python chat=True) to read them "
            "with the model's chat template, or name another field with --field NAME"
        )
    content = [name for name in sizes if not _ORIGIN.search(name.rpartition(".")[2])]
    best = max(content, key=lambda name: sizes[name], default="")
    joined = _joined_fields(rows, called)
    if joined and sum(sizes.get(name, 0) for name in joined) >= sizes.get(best, 0):
        return _plain(joined)
    if not best:
        raise InputError(f"{where} has no field that is clearly its text; name it with --field NAME {_choice(rows)}")
    return _plain([best])


def _plain(names: Sequence[str]) -> _Reading:
    """Fields joined, an instruction under headings and anything else by blank lines; without names, rows are texts."""

    def document(row: object) -> _Document | None:
        parts = [row] if isinstance(row, str) else [_text_at(row, name).strip() for name in names]
        if len(parts) > 1 and names[0].lower() == "instruction" and any(parts):
            parts = [_instruction_text(parts[0], parts[1] if len(parts) == 3 else "", parts[-1])]
        text = _whole_text("\n\n".join(part for part in parts if part)).strip()
        return _Document(text, text) if text else None

    return _Reading(f"{'fields' if len(names) > 1 else 'field'} {_quoted(names)}" if names else "strings", document)


def _chat(fields: Sequence[str]) -> _Reading:
    def document(row: object) -> _Document | None:
        turns = [turn for field in fields for turn in _turns(_value_at(row, field))]
        said = "\n\n".join(f"{turn['role']}: {turn['content'].strip()}" for turn in turns if turn["content"].strip())
        return _Document(said, said, None, tuple(turns)) if said else None

    return _Reading(f"chats in {_quoted(fields)}", document)


def _value_at(value: object, path: str) -> object:
    """What lies at a dotted path of a row: the row itself for an empty path, and of a list every member's."""
    if isinstance(value, list) and path:
        return [part for member in value if (part := _value_at(member, path)) is not None]
    if not path or not isinstance(value, dict):
        return None if path else value
    if path in value:
        return value[path]
    first, _, rest = path.partition(".")
    return _value_at(value[first], rest) if rest and first in value else None


def _text_at(row: object, path: str) -> str:
    """The text at a dotted path, the strings of a list joined by blank lines; empty for anything else."""
    return "\n\n".join(text for name, text in _leaves(_value_at(row, path)) if not name)


def _turns(value: object) -> list[dict]:
    """Turns of `role` and `content`, or of `from` and `value`, as chat templates take them; else nothing.

    Content in parts keeps its text.
    """
    if isinstance(value, str) and _TURNS.match(value):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    turns = []
    for turn in value if isinstance(value, list) else ():
        role = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
        if not isinstance(role, str) or not turn.keys() & {"content", "value", "tool_calls"}:
            return []
        content = turn.get("content", turn.get("value"))
        if isinstance(content, list):
            content = _text_at(content, "text")
        content = _whole_text(content) if isinstance(content, str) else ""
        turns.append({**turn, "role": _SPEAKERS.get(role.lower(), role.lower()), "content": content})
    return turns


def _turn_fields(row: object, path: str = "", depth: int = _DEPTH) -> Iterator[str]:
    """Dotted paths of what holds turns in a row; the empty path for a row that is a list of turns."""
    if _turns(row):
        yield path
    elif depth and isinstance(row, dict):
        for name, part in row.items():
            yield from _turn_fields(part, f"{path}.{name}" if path else name, depth - 1)


def _sizes(rows: Sequence[object]) -> dict[str, int]:
    """Characters of text by field, for the fields that hold text in half of the rows or more."""
    sizes: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for row in rows:
        leaves = list(_leaves(row))
        counts.update({name for name, text in leaves if _has_words(name, text)})
        for name, text in leaves:
            sizes[name] += len(text)
    return {name: size for name, size in sizes.items() if 2 * counts[name] >= len(rows)}


def _leaves(value: object, path: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, str]]:
    """(dotted path, string) of every string in a row; members of a list share its path."""
    if isinstance(value, str):
        yield path, value
    elif depth and isinstance(value, dict):
        for name, part in value.items():
            yield from _leaves(part, f"{path}.{name}" if path else name, depth - 1)
    elif depth and isinstance(value, list):
        for part in value:
            yield from _leaves(part, path, depth - 1)


def _has_words(name: str, text: str) -> bool:
    """Whether a value may be a text: anything in a field that is named as one, elsewhere only words."""
    return bool(text.strip() if name.lower() in _NAMED else _WORDS.search(text) and not _ADDRESS.fullmatch(text))


def _joined_fields(rows: Sequence[object], called: dict[str, str]) -> list[str]:
    """The fields of an instruction, of what it is given in some of the rows, and of its answer."""
    head, answer = (next((called[name] for name in names if name in called), None) for names in (_HEADS, _ANSWERS))
    if head is None or answer is None:
        return []
    context = [name for name in _CONTEXTS if name != head and any(_text_at(row, name) for row in rows)][:1]
    return [head, *context, answer]


def _quoted(names: Iterable[str]) -> str:
    return " + ".join(f"'{name}'" if name else "whole rows" for name in names)


def _choice(rows: Sequence[object]) -> str:
    """The fields there are, for a sentence."""
    names = list(dict.fromkeys(str(name) for row in rows if isinstance(row, dict) for name in row))
    more = ", ..." if len(names) > _SHOWN else ""
    return f"(its fields are {', '.join(names[:_SHOWN])}{more})" if names else "(its rows are no objects with fields)"
