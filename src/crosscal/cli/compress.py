"""`crosscal compress`: prune, quantize or lower the rank of a model, calibrated on your own text, into a new folder."""

import argparse
import math
import os
from dataclasses import fields, replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from crosscal.cli.files import _check_writable
from crosscal.cli.request import (
    _draw_calibration,
    _estimated,
    _method_options,
    _names_in,
    _permissions,
    _read_shares,
    _read_target,
)
from crosscal.cli.tables import _aligned
from crosscal.disk import carry_out
from crosscal.engine.reports import CompressionReport
from crosscal.engine.request import Request
from crosscal.errors import InputError, real_number, whole_number
from crosscal.files import path_kind
from crosscal.methods.allocation import Owl
from crosscal.methods.registry import check_request, find_method
from crosscal.models import find_config, inventory, resolve_device
from crosscal.models.channels import narrow_inventory
from crosscal.output.packing import check_storage
from crosscal.output.writer import Place
from crosscal.results.provenance import device_name, versions
from crosscal.types import SparseGrid, Unstructured, storage_bits

_CALIBRATION = "c4"  # text of methods that read text, when none is named
_WORST = 3  # layers with the largest error that are named
_ADDED = ("refine", "anchor", "rotate", "balance")  # to a method
_LEFT_OUT = ("reason", "matrices", "weights", "share", "names")


def _run_compress(options: argparse.Namespace) -> dict:
    """Check all that can be checked, then draw the text, compress and write."""
    request = _request(options)
    config = find_config(options.model, **_permissions(options))
    report, bits = _expected(request, config)
    shares = dict(request.weights or {})
    asked = {"model": options.model, "method": request.method, "target": str(request.target), "sources": shares}
    asked |= {"windows": options.windows, "length": options.length} if shares else {"windows": 0, "length": 0}
    asked |= {name: value for name in _ADDED if (value := getattr(request, name))}
    told = {"output": options.output, "bits_per_weight": bits}
    if options.dry_run:
        try:
            estimated = _estimated(options, request.target, len(shares), request.allocation is not None)
            taken = estimated.to_json() | {"text": str(estimated)}
        except InputError as error:  # a model whose blocks do not run one by one
            taken = {"text": f"a time that cannot be estimated ({error})"}
        return asked | told | {"dry_run": True, "estimate": taken} | _shares(report)
    texts = _draw_calibration(options, shares)
    request = replace(request, calibration=texts or None, progress=not options.quiet)
    again = {"seed": options.seed, "schedule": options.schedule, "allocation": options.allocation}
    machine = device_name(resolve_device(options.device))
    again |= {"texts": request.texts(), "versions": versions(), "machine": machine, "config": options.reproducing}
    report = carry_out(replace(request, made=asked | again))
    return asked | told | {"texts": request.texts()} | _losses(report) | _shares(report)


def _request(options: argparse.Namespace) -> Request:
    """Return the request, still without text; raises `InputError` for whatever is wrong before anything is loaded."""
    target = _read_target(options)
    if target is None:
        raise InputError("the target is missing; give --sparsity 0.5, --pattern 2:4, --bits 4 or --rank 0.5")
    allocation = Owl() if options.allocation == "owl" else None
    reads_text = find_method(options.method).needs_text or allocation is not None or options.refine
    sources = options.sources or (_CALIBRATION if reads_text else "")
    if options.balance and "=" not in sources:  # the weights are to be found
        names = _names_in(sources)
        sources = ",".join(f"{name}={1 / len(names)!r}" for name in names)
    given = {field.name: getattr(options, field.name, None) for field in fields(Request)}
    given |= {"target": target, "allocation": allocation, "options": _method_options(options.option)}
    given |= {"weights": _read_shares(sources, options) if sources else None}
    given |= {name: tuple(given[name] or ()) for name in ("skip", "only")}
    given |= {name: None for name in ("device", "dtype") if given[name] == "auto"}
    request = Request(**{name: value for name, value in given.items() if value is not None})
    _check(request, options)
    return request


def _check(request: Request, options: argparse.Namespace) -> None:
    check_request(request.solver, request.target, request.options, [])
    check_storage(request.storage, request.method, request.target)
    pattern = request.target.pattern if isinstance(request.target, SparseGrid) else request.target
    if request.allocation is not None and not isinstance(pattern, Unstructured):
        raise InputError(f"--allocation owl sets the sparsity of each block, not {request.target}; give --sparsity")
    if request.weights:
        whole_number("--windows", options.windows, 1)
        whole_number("--length", options.length, 2)
    whole_number("--seed", options.seed)
    if options.micro_batch is not None:
        whole_number("--micro-batch", options.micro_batch, 1)
    real_number("--damp", options.damp, above=True)
    folder = Path(os.path.expanduser(options.output))
    if path_kind(folder) and not options.overwrite:
        raise InputError(f"{options.output} exists already; give another --output, or allow to --overwrite it")
    _check_writable(folder)
    Place(folder).check(options.overwrite)
    resolve_device(options.device)


def _expected(request: Request, config: PreTrainedConfig) -> tuple[CompressionReport, float]:
    """Return which layers of a model without weights would be compressed, and the stored bits of their weights.

    Raises `InputError` for layers that cannot be compressed or stored as requested, and where they are too few.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=request.trust_remote_code)
    parts = (
        narrow_inventory(model, request.width)
        if request.width
        else inventory(model, skip=request.skip, only=request.only)
    )
    request.check_parts(parts)
    shapes = [(layer.weight.shape[0], layer.weight.shape[1]) for block in parts.layers for layer in block]
    check_storage(request.storage, request.method, request.target, [d_in for _, d_in in shapes])
    dtype = request.dtype or str(config.dtype).removeprefix("torch.")
    dense_bits = 32 if dtype == "float32" else 16
    bits = sum(storage_bits(request.target, dense_bits, shape) * math.prod(shape) for shape in shapes)
    return CompressionReport(inventory=parts.told()), round(bits / max(1, sum(map(math.prod, shapes))), 4)


def _losses(report: CompressionReport) -> dict:
    errors = {layer.name: layer.relative_error for layer in report.layers if layer.relative_error is not None}
    worst = sorted(errors.items(), key=lambda pair: -pair[1])[:_WORST]
    return {
        "mix_weights": report.mix_weights(),
        "seconds": round(report.seconds, 2),
        "peak_bytes": report.peak_bytes,
        "sparsity": report.sparsity,
        "layer_error": sum(errors.values()) / len(errors) if errors else None,
        "worst_layers": [{"name": name, "relative_error": error} for name, error in worst],
    }


def _shares(report: CompressionReport) -> dict:
    """Which part of the decoder's weights is compressed, and what is left out and why."""
    return {
        "layers": report.inventory["layers"],
        "weights": report.inventory["weights"],
        "share": report.inventory["share"],
        "channels": report.inventory.get("channels"),
        "weights_left": report.inventory.get("weights_left"),
        "fallbacks": report.fallbacks(),
        "left_out": [dict(zip(_LEFT_OUT, row, strict=True)) for row in report.left_out()],
        "told": [report.share_sentence(), report.fallback_sentence(), report.width_sentence()],
    }


def _show_compress(result: dict) -> str:
    """The outcome (or the plan) in a few lines."""
    shares = result["sources"]
    sources = " + ".join(f"{share:g} {source}" if len(shares) > 1 else source for source, share in shares.items())
    text = (
        f"calibrated on {sources}, {result['windows']} windows of {result['length']} tokens" if sources else "no text"
    )
    method = ", ".join([result["method"], *(f"{name} {result[name]}" for name in _ADDED if name in result)])
    head = f"{result['model']}: {method} to {result['target']}, {text}"
    if result.get("dry_run"):
        return "\n".join(
            [
                f"would compress {head}",
                *_show_shares(result, "would change  "),
                *([f"would leave    {width}"] if (width := result["told"][2].replace(" are left", "")) else []),
                f"would write    {result['output']}",
                f"would take     {result['estimate']['text']}",
                "nothing was done: this was a dry run",
            ]
        )
    lines = [
        f"compressed {head}",
        f"written to {result['output']}",
        f"  {result['seconds']:.1f} s, peak memory {result['peak_bytes'] / 2**20:,.0f} MiB above the start",
        _what_is_left(result),
        *_show_shares(result, "  these are"),
    ]
    if found := result["mix_weights"]:
        lines += [f"  mix weights that were found: {', '.join(f'{name} {share:.3f}' for name, share in found.items())}"]
        lines[-1] += ", means over layers" * (result["balance"] == "worst")
    if result["worst_layers"]:
        worst = ", ".join(f"{layer['name']} {100 * layer['relative_error']:.2g} %" for layer in result["worst_layers"])
        lines += [f"  output error of the layers: mean {100 * result['layer_error']:.2g} %; largest: {worst}"]
    return "\n".join(
        [*lines, f"measure the loss: crosscal evaluate --model {result['output']} --dense {result['model']}"]
    )


def _what_is_left(result: dict) -> str:
    """How many weights are zero, or how many channels are left."""
    if width := result["told"][2]:
        return f"  {width}"
    return (
        f"  {100 * result['sparsity']:.1f} % of the weights of {result['layers']} layers are zero; packed, a weight "
        f"takes {result['bits_per_weight']:.2f} bits"
    )


def _show_shares(result: dict, start: str) -> list[str]:
    """The share of the weights in these layers, what else was left out than embedding and head, and poor experts."""
    rows, (share, few, _) = result["left_out"], result["told"]
    reasons, lines = [row["reason"] for row in rows], [f"{start} {share}"]
    if set(reasons) <= {"embedding", "head"}:
        lines[0] += f"; {' and '.join(reasons)} {'stay' if len(rows) > 1 else 'stays'} dense" if rows else ""
    else:
        table = _aligned(_LEFT_OUT[:-1], [[row[key] for key in _LEFT_OUT[:-1]] for row in rows]).splitlines()
        lines[0] += "; left out:"
        named = zip(table, ["", *(row["names"] for row in rows)], strict=True)
        lines += [f"    {line}  {name}".rstrip() for line, name in named]
    return lines + ([f"  {few}"] if few else [])
