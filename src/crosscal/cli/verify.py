"""`crosscal verify`: a compressed folder made once more from its own record, and compared with what it holds.

`compress` writes the call, the versions, the machine and hashes of model, texts and every layer's statistics into
`crosscal.json`. The same call is repeated here into a folder beside the first, which goes away afterwards; then the
weights are compared byte by byte. Where they differ, the first layer that does, in the order of the model, says where
the two ways part, and the records say what was different: the model, a text, a version, the machine.
"""

import argparse
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import safe_open

from crosscal.cli.compress import _run_compress
from crosscal.cli.config import _REPORT, _config_values, _parse, _read_config
from crosscal.cli.files import _note
from crosscal.cli.parser import _CommandParser
from crosscal.engine.ranks import ranks
from crosscal.errors import InputError
from crosscal.files import path_kind

_RECORDED = {"fingerprint": "the model", "versions": "versions", "machine": "the machine"}


def _run_verify(options: argparse.Namespace) -> dict:
    """Repeat the call that made a folder, and compare; `exit_status` is 0 for the same bytes and 1 for others."""
    folder = Path(os.path.expanduser(options.folder)).absolute()
    before, n = _record(folder), ranks().world
    if n != (made_by := before["made"].get("ranks", 1)):
        start = f"torchrun --nproc-per-node {made_by} -m crosscal verify" if made_by > 1 else "it without torchrun"
        raise InputError(f"{options.folder} was made by {made_by} processes and not by {n}; start {start}")
    again = folder.with_name(f".{folder.name}.verified")  # of a fixed name, so that an interrupted call goes on
    arguments = ["--config", str(folder), "--output", str(again), "--overwrite"]
    parser = _CommandParser("compress")
    call = _parse(parser, "compress", arguments + ["--quiet"] * options.quiet)
    call.reproducing = _config_values(parser, "compress", call)
    call.dry_run = options.dry_run
    result: dict[str, Any] = {"folder": options.folder, "call": _read_config(folder)}
    if options.dry_run:
        return result | {"dry_run": True, "estimate": _run_compress(call)["estimate"]}
    _note(options, f"making {options.folder} again")
    _run_compress(call)
    if not ranks().first:  # which compares
        return {}
    after = _record(again)
    difference = next(_differences(folder, again, [layer["name"] for layer in before["layers"]]), None)
    reasons = list(_reasons(before, after)) if difference else []
    shutil.rmtree(again, ignore_errors=True)
    same = difference is None
    result |= {"same": same, "exit_status": 0 if same else 1, "weights": _hash(folder)}
    return result | ({} if same else {"first_difference": difference | _layer(difference["tensor"], before, after),
                                      "reasons": reasons})  # fmt: skip


def _record(folder: Path) -> dict:
    """The record of a folder; raises `InputError` where there is none, or none of a command."""
    if path_kind(folder) != "folder":
        raise InputError(f"there is no folder {folder}; give one that crosscal compress wrote")
    try:
        record = json.loads((folder / _REPORT).read_text(encoding="utf-8"))
        record["made"]["config"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{folder} holds no record of a call ({_REPORT}); give a folder that crosscal compress wrote: one that was "
            "saved from Python has none"
        ) from None
    return record


def _tensors(folder: Path) -> dict[str, Path]:
    """Every tensor of a folder and the file that holds it, in the order of the files."""
    names: dict[str, Path] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, "pt") as file:
            names |= dict.fromkeys(file.offset_keys(), path)
    return names


def _differences(folder: Path, again: Path, layers: Sequence[str]) -> Iterator[dict]:
    """Every tensor of which the two folders hold other bytes: those of layers in their order, then all others."""
    here, there = _tensors(folder), _tensors(again)
    places = {name: place for place, name in enumerate(layers)}
    for name in sorted(here | there, key=lambda name: (places.get(_layer_of(name, layers), len(layers)), name)):
        if name not in here or name not in there:
            yield {"tensor": name, "what": f"is only in the folder {'as it is' if name in here else 'made again'}"}
            continue
        with safe_open(here[name], "pt") as one, safe_open(there[name], "pt") as other:
            first, second = one.get_tensor(name), other.get_tensor(name)
        if first.dtype != second.dtype or first.shape != second.shape:
            shapes = [f"{tensor.dtype} {list(tensor.shape)}" for tensor in (first, second)]
            yield {"tensor": name, "what": f"is {shapes[0]} there and {shapes[1]} made again"}
        elif bytes(first.untyped_storage()) != bytes(second.untyped_storage()):
            apart = float((first != second).double().mean())
            yield {"tensor": name, "what": f"differs in {100 * apart:.3g} % of its entries"}


def _layer(tensor: str, before: dict, after: dict) -> dict:
    """What the records say of the layer of a tensor: whether its statistics differed, or only what came of them."""
    layers = [{layer["name"]: layer for layer in record["layers"]} for record in (before, after)]
    name = _layer_of(tensor, list(layers[0]))
    if name not in layers[1]:
        return {"layer": None, "where": "in a part of the model that is copied as it is"}
    seen = [layer[name].get("statistics") for layer in layers]
    where = "after equal statistics of its inputs" if seen[0] == seen[1] else "with other statistics of its inputs"
    return {"layer": name, "where": where if any(seen) else "without text"}


def _layer_of(tensor: str, layers: Sequence[str]) -> str:
    """The layer that a tensor is a part of; "" for embeddings, norms and heads."""
    return next((name for name in layers if f".{name}." in f".{tensor}."), "")


def _reasons(before: dict, after: dict) -> Iterator[str]:
    """What was different when the folder was made, as far as the records tell."""
    records = [record["made"] | {"fingerprint": record["fingerprint"]} for record in (before, after)]
    texts = [record.get("texts", {}) for record in records]
    for name in texts[0]:
        if texts[0][name] != texts[1].get(name):
            yield f"the text {name} has changed"
    for key, what in _RECORDED.items():
        one, other = (str(record.get(key, "not recorded")) for record in records)
        if one != other:
            yield f"{what} differs: {one} then, {other} now"


def _hash(folder: Path) -> str:
    """One hash of the weights of a folder: of the names, types and bytes of its tensors."""
    digest = sha256()
    for name, path in sorted(_tensors(folder).items()):
        with safe_open(path, "pt") as file:
            tensor = file.get_tensor(name)
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode() + bytes(tensor.untyped_storage()))
    return digest.hexdigest()


def _show_verify(result: dict) -> str:
    """Return the answer, and where and why the ways parted."""
    if result.get("dry_run"):
        return (
            f"would make {result['folder']} again and compare it\nwould take {result['estimate']['text']}\n"
            "nothing was done: this was a dry run"
        )
    if result["same"]:
        return f"{result['folder']}: the same bytes (sha256 of all weights {result['weights'][:16]})"
    first = result["first_difference"]
    lines = [f"{result['folder']}: other bytes; the first difference is in {first['tensor']}, which {first['what']},"]
    lines += [f"  {first['where']}", *(f"  {reason}" for reason in result["reasons"])]
    if not result["reasons"]:
        lines += ["  model, texts, versions and machine are the same: the folder was changed after it was made"]
    return "\n".join(lines)
