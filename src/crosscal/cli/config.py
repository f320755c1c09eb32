"""Options in a TOML file: read with `--config`, written with `--save-config`.

    command = "compress"
    model = "my-model"
    sparsity = 0.5
    sources = { c4 = 0.5, "my_notes.jsonl" = 0.5 }

Keys are the options' long names. The command line goes before the file, and the file before the defaults.
"""

import argparse
import json
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crosscal.errors import InputError, suggest
from crosscal.files import path_kind

_REPORT = "crosscal.json"
"""The report of `compress` in a model folder; it holds the options that made the folder."""
_ABOUT_THE_CALL = ("help", "json", "quiet", "config", "save_config", "dry_run")
_ONCE = ("overwrite", "yes")
"""Permissions for one call, which are never saved."""
_WRITTEN_NUMBERS = ("sparsity", "rank", "target", "weights")
"""Texts that are numbers. In all others a number is refused: 1.10 has become 1.1 before anybody sees it."""


def _read_config(path: Path) -> dict[str, object]:
    """Return the options in a TOML file, or those that made a folder (or its crosscal.json); raises `InputError`."""
    path = path / _REPORT if path_kind(path) == "folder" else path
    try:
        text = path.read_text(encoding="utf-8-sig")
        return json.loads(text)["made"]["config"] if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        said = f"there is no file {path}; give --config a TOML file or a folder made by compress"
    except UnicodeDecodeError:
        said = f"{path} is not UTF-8 text; save it in that encoding"
    except OSError as error:
        said = f"{path} cannot be read ({error.strerror}); give --config a TOML file"
    except tomllib.TOMLDecodeError as error:
        said = f'{path} is not TOML ({error}); write lines such as pattern = "2:4", texts in quotes'
    except (ValueError, KeyError, TypeError, RecursionError):
        said = f"{path} holds no options; give the TOML file written by --save-config"
    raise InputError(said)


def _parse(parser: argparse.ArgumentParser, command: str, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line and the file of its `--config`; raises `InputError` for what is wrong in the file."""
    first = argparse.ArgumentParser(prog=parser.prog, add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    if path := first.parse_known_args(arguments)[0].config:
        _apply_config(parser, command, _read_config(Path(os.path.expanduser(path))), path)
    return parser.parse_args(arguments)


def _apply_config(parser: argparse.ArgumentParser, command: str, values: dict[str, object], path: str) -> None:
    """Make the values of a file the parser's defaults; raises `InputError` for unknown keys and unfit values."""
    values = dict(values)
    meant = values.pop("command", command)
    if meant != command:
        raise InputError(f"{path} is for 'crosscal {meant}', not for 'crosscal {command}'; run that, or another file")
    actions = _actions(parser)
    for key, value in values.items():
        action = actions.get(key.replace("-", "_"))
        if action is None:
            known = [name.replace("_", "-") for name in actions]
            raise InputError(f"{path} has an unknown key '{key}'{suggest(key, known)} (known: {', '.join(known)})")
        parser.set_defaults(**{action.dest: _value(action, value, f"{path}: {key}")})
        action.required = False


def _config_values(parser: argparse.ArgumentParser, command: str, options: argparse.Namespace) -> dict[str, object]:
    """The options that repeat a call, as plain values, without those that were not given and have no default."""
    kept = {name: getattr(options, name) for name in _actions(parser) if name not in _ONCE}
    plain = {name.replace("_", "-"): value for name, value in kept.items() if value not in (None, [])}
    return {"command": command, **plain}


def _actions(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {action.dest: action for action in parser._actions if action.dest not in _ABOUT_THE_CALL}


def _value(action: argparse.Action, value: object, where: str) -> object:
    """A value of a file as the parser would have read it: tables and lists stand for what has commas there."""
    if action.nargs == 0:
        if isinstance(value, bool):
            return value
        raise InputError(f"{where} is {_shown(value)}; give true or false")
    if isinstance(value, dict):
        for name, part in value.items():
            if isinstance(part, dict):
                said = 'is no number; put names with dots in quotes, as in "notes.jsonl" = 0.5'
                raise InputError(f"{where}: {name} {said}")
            if not isinstance(part, (bool, int, float, str)):
                raise InputError(f"{where}: {name} is {_shown(part)}; give a number, true or false")
        value = [f"{name}={part}" for name, part in value.items()]
    parts = [_one(action, part, where) for part in (value if isinstance(value, list) else [value])]
    if action.nargs in ("*", "+") or isinstance(action, argparse._AppendAction):
        return parts
    return _one(action, ",".join(map(str, parts)), where) if isinstance(value, list) else parts[0]


def _one(action: argparse.Action, value: object, where: str) -> object:
    kind: Any = action.type or str
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is str and not isinstance(value, str) and not (number and action.dest in _WRITTEN_NUMBERS):
        raise InputError(f"{where} is {_shown(value)}; give it in quotes, as it is written on the command line")
    try:
        if not number and not isinstance(value, str):
            raise ValueError
        known = kind(str(value))
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise InputError(f"{where} is {_shown(value)}; give {wanted}") from None
    if action.choices is not None and known not in action.choices:
        choices = list(action.choices)
        raise InputError(f"{where} is {_shown(value)}{suggest(str(value), choices)}; give one of {', '.join(choices)}")
    return known


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, str) else str(value)


def _as_toml(values: dict[str, object]) -> str:
    """Return the TOML file that repeats a call."""
    return "".join(f"{key} = {_toml(value)}\n" for key, value in values.items())


def _toml(value: object) -> str:
    """A value in TOML.

    >>> _toml([True, 0.5, 'a "b"'])
    '[true, 0.5, "a \\\\"b\\\\""]'
    """
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, (bool, int, float)):
        return repr(value).lower()
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


read_config = _read_config  # as outside checks know it
