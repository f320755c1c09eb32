"""Your own text: .txt with blank lines between documents, or .jsonl with one object a line. Standard library only."""

import json
import os
import re
from pathlib import Path

from crosscal.errors import InputError

SUFFIXES = (".txt", ".jsonl")


def is_path(source: str) -> bool:
    """Whether a source is meant as a file: it has a separator or one of the endings we read.

    >>> is_path("notes.jsonl"), is_path("pubmed")
    (True, False)
    """
    return Path(source).suffix.lower() in SUFFIXES or "/" in source or os.sep in source or Path(source).is_file()


def read_file(path: Path, field: str = "text") -> list[str]:
    """The documents of a file; raises `InputError` when it is missing, of another kind, unreadable or empty."""
    if not path.exists():
        raise InputError(f"there is no file {path}; give the path of a .txt or .jsonl file")
    if path.is_dir() or path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{path} is no .txt or .jsonl file; give text with blank lines between documents, or JSON lines"
        )
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}); check its permissions") from None
    found = re.split(r"\n[ \t]*\n", content) if path.suffix.lower() == ".txt" else _json_lines(path, content, field)
    texts = [text.strip() for text in found if text.strip()]
    if not texts:
        raise InputError(f"{path} holds no text; give a file with at least two documents")
    return texts


def _json_lines(path: Path, content: str, field: str) -> list[str]:
    """The text of each object: its `field`, or the first field that is a string."""
    texts = []
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"line {number} of {path} is no JSON ({error}); write one object a line") from None
        text = text_of(row, field)
        if text is None:
            raise InputError(f"line {number} of {path} has no text; give each object a string field named '{field}'")
        texts.append(text)
    return texts


def text_of(row: object, field: str = "text") -> str | None:
    """The text of one object: `field` if it is a string, else the first string among its values.

    >>> text_of({"id": 7, "body": "Hello"})
    'Hello'
    """
    if isinstance(row, str):
        return row
    if not isinstance(row, dict):
        return None
    if isinstance(row.get(field), str):
        return row[field]
    return next((value for value in row.values() if isinstance(value, str)), None)
