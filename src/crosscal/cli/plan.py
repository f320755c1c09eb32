"""What `compress` is about to do, with everything checked that needs neither weights nor text."""

import argparse
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from crosscal.cli.options import config_of
from crosscal.cli.sources import DEFAULT, read_shares
from crosscal.cli.targets import check_method, read_method_options, read_target
from crosscal.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from crosscal.methods.registry import Method
    from crosscal.types import Target


@dataclass(frozen=True)
class Plan:
    """A method, its target, the share of each source, what else the method is told, and the model's config.

    `shapes` are the layers' [d_out, d_in], `dense_bits` the bits of a weight that is not compressed.
    """

    method: "Method"
    target: "Target"
    shares: dict[str, float]
    options: dict[str, object]
    allocation: dict[str, object]
    config: "PreTrainedConfig"
    shapes: list[tuple[int, int]]
    dense_bits: int

    @property
    def bits_per_weight(self) -> float:
        """What a weight takes when packed, averaged over all weights of the layers."""
        from crosscal.types import storage_bits

        bits = [storage_bits(self.target, self.dense_bits, shape) * prod(shape) for shape in self.shapes]
        return round(sum(bits) / sum(map(prod, self.shapes)), 4)


def make_plan(options: argparse.Namespace) -> Plan:
    """Read what was asked for; raises `InputError` for whatever is wrong with it."""
    from crosscal.methods.allocation import Owl
    from crosscal.methods.registry import check_request, find_method
    from crosscal.models.loading import resolve_device
    from crosscal.output.packing import check_storage

    method, target = find_method(options.method), read_target(options)
    extra = read_method_options(options.option)
    check_method(method, target, extra, options.allocation)
    needs_text = method.needs_text or options.allocation == "owl"
    sources = options.sources or (DEFAULT if needs_text else "")
    shares = read_shares(sources, options) if sources else {}
    _check_numbers(options, bool(shares))
    _check_output(options)
    resolve_device(options.device)
    config = config_of(options.model, options)
    shapes = _shapes(config, options)
    widths = [d_in for _, d_in in shapes]
    check_request(method, target, extra, widths)
    if options.storage != "dense":
        check_storage(options.storage, method.name, target, widths)
    allocation = {"allocation": Owl()} if options.allocation == "owl" else {}
    return Plan(method, target, shares, extra, allocation, config, shapes, _dense_bits(config, options))


def _check_numbers(options: argparse.Namespace, reads_text: bool) -> None:
    least = {"windows": 1, "length": 2, "seed": 0} if reads_text else {"seed": 0}
    for name, lowest in least.items():
        if getattr(options, name) < lowest:
            raise InputError(f"--{name} is {getattr(options, name)}; give a whole number of at least {lowest}")
    if options.micro_batch is not None and options.micro_batch < 1:
        raise InputError(f"--micro-batch is {options.micro_batch}; give a whole number of at least 1")
    if not 0 < options.damp < float("inf"):
        raise InputError(f"--damp is {options.damp:g}; give a number above 0, such as 0.01")


def _check_output(options: argparse.Namespace) -> None:
    """The same questions that are asked again before writing, here before anything is loaded."""
    from crosscal.output.writer import Place

    folder = Path(options.output).expanduser()
    if folder.exists() and not options.overwrite:
        raise InputError(f"{options.output} exists already; give another --output, or allow to --overwrite it")
    Place(folder).check(options.overwrite)


def _shapes(config: "PreTrainedConfig", options: argparse.Namespace) -> list[tuple[int, int]]:
    """The shapes of the layers to be compressed, from a model without weights."""
    import torch
    from transformers import AutoModelForCausalLM

    from crosscal.models import decoder_blocks, linear_layers

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=options.trust_remote_code)
    return [tuple(layer.weight.shape) for block in decoder_blocks(model) for layer in linear_layers(block)]


def _dense_bits(config: "PreTrainedConfig", options: argparse.Namespace) -> int:
    """The bits of a written weight: of the type asked for, else of the model's own."""
    dtype = options.dtype if options.dtype != "auto" else str(config.dtype).removeprefix("torch.")
    return 32 if dtype == "float32" else 16


def estimate(plan: Plan, options: argparse.Namespace) -> dict:
    """Time and memory on this machine, which is measured for about a second; `text` says it in a sentence."""
    from crosscal.machine import estimate as estimated

    found = estimated(
        plan.config,
        plan.method.name,
        plan.target,
        n_windows=options.windows,
        length=options.length,
        n_sources=len(plan.shares),
        device=options.device,
        dtype=options.dtype,
        schedule=options.schedule,
        owl=bool(plan.allocation),
        trust_remote_code=options.trust_remote_code,
    )
    return {**found.to_json(), "text": str(found)}
