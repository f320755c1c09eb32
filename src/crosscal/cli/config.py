"""Options in a TOML file: read with `--config`, written with `--save-config`.

    command = "compress"
    model = "my-model"
    sparsity = 0.5
    sources = "c4=0.5,my_notes.jsonl=0.5"

Keys are the options' long names. The command line goes before the file, and the file before the defaults.
"""

import argparse
import json
import tomllib
from pathlib import Path

from crosscal.errors import InputError, suggest

REPORT = "crosscal.json"
"""What `compress` leaves in a folder; it holds the options that made the folder."""

ABOUT_THE_CALL = ("help", "json", "quiet", "config", "save_config", "dry_run")
ONCE = ("overwrite", "yes")
"""Permissions that hold for one call and are therefore never saved."""


def read_config(path: Path) -> dict[str, object]:
    """The options in a TOML file, or those that made the folder (or its crosscal.json); raises `InputError`."""
    try:
        path = path / REPORT if path.is_dir() else path
        text = path.read_text(encoding="utf-8")
        return json.loads(text)["made"]["config"] if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise InputError(f"there is no file {path}; give --config a TOML file or a folder made by compress") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); give --config a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is no TOML ({error}); write lines such as sparsity = 0.5") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} tells no options; give the TOML file written by --save-config") from None


def apply_config(parser: argparse.ArgumentParser, command: str, values: dict[str, object], path: str) -> None:
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


def config_text(parser: argparse.ArgumentParser, command: str, options: argparse.Namespace) -> str:
    """The TOML file that repeats a call."""
    lines = [f"{key} = {_toml(value)}" for key, value in config_values(parser, command, options).items()]
    return "\n".join(lines) + "\n"


def config_values(parser: argparse.ArgumentParser, command: str, options: argparse.Namespace) -> dict[str, object]:
    """The options that repeat a call, as plain values; what was not given and has no default is left out."""
    kept = {name: getattr(options, name) for name in _actions(parser) if name not in ONCE}
    plain = {name.replace("_", "-"): value for name, value in kept.items() if value not in (None, [])}
    return {"command": command} | plain


def _actions(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {action.dest: action for action in parser._actions if action.dest not in ABOUT_THE_CALL}


def _value(action: argparse.Action, value: object, where: str) -> object:
    """A value of a file as the parser would have read it."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise InputError(f"{where} is {value!r}; give true or false")
        return value
    if action.nargs in ("*", "+") or isinstance(action, argparse._AppendAction):
        return [_one(action, part, where) for part in (value if isinstance(value, list) else [value])]
    if isinstance(value, dict):
        value = ",".join(f"{name}={part}" for name, part in value.items())
    return _one(action, ",".join(map(str, value)) if isinstance(value, list) else value, where)


def _one(action: argparse.Action, value: object, where: str) -> object:
    kind = action.type or str
    try:
        if isinstance(value, (bool, dict, list)):
            raise ValueError
        found = kind(str(value))
    except (ValueError, argparse.ArgumentTypeError):
        raise InputError(f"{where} is {value!r}; give it as on the command line ({action.help})") from None
    if action.choices is not None and found not in action.choices:
        known = list(action.choices)
        raise InputError(f"{where} is {value!r}{suggest(str(value), known)}; give one of {', '.join(known)}")
    return found


def _toml(value: object) -> str:
    """A value in TOML.

    >>> _toml([True, 0.5, 'a "b"'])
    '[true, 0.5, "a \\\\"b\\\\""]'
    """
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
