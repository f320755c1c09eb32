"""Write a compressed model to a folder that transformers, the evaluation harness and llama.cpp's converter read.

The folder holds what the Hugging Face format holds (weights in safetensors shards, configuration, generation
configuration, tokenizer) and beside it the masks, a report of every layer and a model card that says how it was made.
Quantized models can be stored packed, as compressed-tensors does it.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from crosscal import __version__
from crosscal.engine.reports import CompressionReport
from crosscal.errors import InputError, suggest
from crosscal.models import LoadedModel, decoder_blocks, linear_layers
from crosscal.output.packing import STORAGES, bytes_saved, model_quantization_config, packable_layers, packed_state
from crosscal.types import Grid

REPORT, MASKS, CARD = "crosscal.json", "masks.safetensors", "README.md"
SHARD = "2GB"
ROOM = 1.05  # of the weights' bytes, for configuration, tokenizer and masks


def save_model(
    loaded: LoadedModel,
    folder: str | Path,
    *,
    report: CompressionReport | None = None,
    made: Mapping[str, object] | None = None,
    overwrite: bool = False,
    storage: str = "dense",
    grid: Grid | None = None,
) -> Path:
    """Write a model with its tokenizer; `made` says how it was made, in plain values, and goes into report and card.

    Weights keep their dtype, tied weights stay tied, and shards are written one after the other. Everything is written
    beside `folder` and renamed in the end: a full disk or a kill leaves an earlier folder as it was. With a `report`
    the masks of all compressed layers are kept in `masks.safetensors`, one bit a weight (numpy's `packbits` of
    "weight is not zero", rows first), and the layers' reports in `crosscal.json`.

    `storage` "compressed-tensors" writes codes of a few bits and scales in the place of the weights of the compressed
    layers, which must lie on `grid` (`crosscal.output.packing.grid_of` names that of a method and target). `load_model`
    and transformers get back the very same weights.

    Raises `InputError` when `folder` exists and is not to be overwritten, or was not made by this function, when the
    disk has too little room, when writing fails, and for weights that `storage` cannot hold.
    """
    folder = Path(folder).expanduser()
    check_place(folder, overwrite)
    _check_storage(loaded, storage, grid)
    packed = storage != "dense"
    made = dict(made or {}) | ({"storage": f"{storage}, {grid}"} if packed else {})
    work = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        _check_room(loaded, work, grid if packed else None)
        state = packed_state(loaded.model, grid) if packed else None
        loaded.model.save_pretrained(work, state_dict=state, max_shard_size=SHARD)
        if packed:
            _describe_packing(loaded, work, grid)
        if loaded.tokenizer is not None:
            loaded.tokenizer.save_pretrained(work)
        _write_sidecars(loaded, work, report, made)
        _replace(work, folder)
    except OSError as error:
        raise InputError(f"{folder} could not be written ({error.strerror or error}); free some space there") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def check_place(folder: Path, overwrite: bool) -> None:
    """Raises `InputError` unless a model may be written to this folder."""
    if not folder.exists():
        return
    if not overwrite:
        raise InputError(f"{folder} exists already; give another folder, or allow to overwrite it")
    if not (folder / REPORT).exists() and any(folder.iterdir()):
        raise InputError(f"{folder} was not made by crosscal, so it is not overwritten; give another folder")


def _check_storage(loaded: LoadedModel, storage: str, grid: Grid | None) -> None:
    if storage not in STORAGES:
        raise InputError(
            f"storage is '{storage}'{suggest(str(storage), list(STORAGES))}; give one of {', '.join(STORAGES)}"
        )
    if storage != "dense":
        if grid is None:
            raise InputError(f"storage='{storage}' needs the grid of the weights; pass grid=Grid(4, PerGroup(128))")
        packable_layers(loaded.model, grid)


def _describe_packing(loaded: LoadedModel, work: Path, grid: Grid) -> None:
    """Put into config.json what readers need to unpack the weights."""
    path = work / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["quantization_config"] = model_quantization_config(loaded.model, grid)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _check_room(loaded: LoadedModel, work: Path, grid: Grid | None) -> None:
    """Tied weights count once: they are written once. With a `grid`, layers count as they are packed."""
    storages = {p.untyped_storage().data_ptr(): p.numel() * p.element_size() for p in loaded.model.parameters()}
    size = sum(storages.values()) - (0 if grid is None else bytes_saved(packable_layers(loaded.model, grid), grid))
    needed, free = int(ROOM * size), shutil.disk_usage(work).free
    if needed > free:
        raise InputError(
            f"it takes {needed / 2**30:.1f} GiB and {work.parent} has {free / 2**30:.1f} GiB left; free some space"
        )


def _write_sidecars(loaded: LoadedModel, work: Path, report: CompressionReport | None, made: dict) -> None:
    body = {"crosscal": __version__, "model": loaded.name, "fingerprint": loaded.fingerprint, "made": made}
    if report is not None:
        body |= {"seconds": round(report.seconds, 2), "peak_bytes": report.peak_bytes, "sparsity": report.sparsity}
        body["layers"] = [vars(layer) for layer in report.layers]
        save_file(packed_masks(loaded.model), work / MASKS)
    (work / REPORT).write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    (work / CARD).write_text(model_card(loaded.name, report, made), encoding="utf-8")


def packed_masks(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """For each compressed layer, "block.name" -> bits of "weight is not zero", uint8 [ceil(d_out * d_in / 8)]."""
    return {
        f"{index}.{layer.name}": np.packbits((layer.weight != 0).cpu().numpy())
        for index, block in enumerate(decoder_blocks(model))
        for layer in linear_layers(block)
    }


def model_card(name: str, report: CompressionReport | None, made: Mapping[str, object]) -> str:
    """A card in the hub's form: how the model was made, and what its layers lost."""
    lines = ["---", f"base_model: {json.dumps(name)}", "library_name: transformers", "tags: [crosscal, compressed]"]
    lines += ["---", "", f"# {name}, compressed with crosscal {__version__}", ""]
    lines += [f"- {key}: {_plain(value)}" for key, value in made.items()]
    if report is not None:
        errors = [layer.relative_error for layer in report.layers if layer.relative_error is not None]
        lines += [f"- layers: {len(report.layers)}, {100 * report.sparsity:.1f} % of their weights are zero"]
        if errors:
            mean, worst = sum(errors) / len(errors), max(errors)
            lines += [f"- output error of the layers on the calibration text: mean {mean:.4g}, worst {worst:.4g}"]
    lines += ["", "Only linear layers inside the decoder blocks changed; embeddings and head are the base model's."]
    return "\n".join(lines) + "\n"


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _replace(work: Path, folder: Path) -> None:
    """Put the new folder in the old one's place: the old one is set aside first and removed last."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        folder.rename(aside)
    try:
        work.rename(folder)
    except OSError:
        if aside.exists():
            aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)
