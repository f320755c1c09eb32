"""`crosscal doctor`: what this machine can do, what is missing, and what a compression would take."""

import argparse
from typing import TYPE_CHECKING

from crosscal.cli.options import add_model_options, loading
from crosscal.cli.targets import add_target_options
from crosscal.errors import InputError

if TYPE_CHECKING:
    from crosscal.machine import Estimate, Machine

HELP = "what this machine can do, what is missing, and what a compression would take"
DESCRIPTION = """
Look at this machine: devices and the number formats they are fast in, memory, free disk of the caches, and the packages
that are installed or missing. With --model, estimate time and memory of a compression from the model's config alone: no
weights are downloaded or loaded, but the machine is measured for about a second.
"""
EXAMPLES = """
# is everything there?
crosscal doctor

# how long would this take here, and does it fit?
crosscal doctor --model Qwen/Qwen2.5-0.5B --method sparsegpt --sparsity 0.5 --windows 128 --length 2048

# for a script
crosscal doctor --json
"""
INTERRUPTED = "interrupted; nothing was changed"
OK, MISSING, SLOW = "ok", "missing", "slow"
LITTLE_DISK, LITTLE_MEMORY = 5 * 2**30, 4 * 2**30
BUSY = 0.5  # of the cores wanted by others: times will be longer


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `crosscal doctor`."""
    parser.add_argument("--model", help="estimate for this model: built-in, a folder, or a hub id")
    parser.add_argument("--method", default="sparsegpt", help="the method to estimate for (default: %(default)s)")
    add_target_options(parser)
    parser.add_argument("--sources", type=int, default=1, metavar="N", help="how many texts (default: %(default)s)")
    parser.add_argument("--windows", type=int, default=128, help="windows of each text (default: %(default)s)")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a window (default: %(default)s)")
    parser.add_argument("--schedule", default="sublayer", help="sublayer, block or parallel (default: %(default)s)")
    add_model_options(parser, "number format of the model in memory (default: the device's fast one)")


def run(options: argparse.Namespace) -> dict:
    """Look at the machine, and estimate when a model is named."""
    from crosscal.machine import this_machine

    machine = this_machine()
    found = {"checks": [*_devices(machine), *_disks(machine), *_packages(machine)], "estimate": None}
    if options.model is not None:
        estimate = _estimate(options)
        found["estimate"] = estimate.to_json() | {"text": str(estimate), "model": options.model}
        found["checks"].append(_fits(machine, estimate))
    return found


def _check(name: str, state: str, text: str) -> dict:
    return {"name": name, "state": state, "text": text}


def _devices(machine: "Machine") -> list[dict]:
    from crosscal.machine import size

    found = []
    for device in machine.devices:
        pace = "multiplies bfloat16 in hardware" if device.bf16 else "no bfloat16 units: float32, several times slower"
        if device.kind == "cpu":
            pace = f"{machine.cores} cores, {machine.threads} threads; {pace}"
        text = f"{device.name}; {size(device.free)} of {size(device.total)} free; {pace}"
        little = device.total > 0 and device.free < LITTLE_MEMORY
        found.append(_check(device.kind, OK if device.bf16 and not little else SLOW, text))
    if len(machine.devices) == 1:
        found.append(_check("GPU", SLOW, "none that torch can use; models up to some billion weights are bearable"))
    if machine.load is not None and machine.load > BUSY * machine.cores:
        busy = f"{machine.load:.1f} processes want {machine.cores} cores: everything takes longer than estimated"
        found.append(_check("load", SLOW, busy))
    return found


def _disks(machine: "Machine") -> list[dict]:
    from crosscal.machine import size

    return [
        _check(
            "disk", OK if disk.free > LITTLE_DISK else SLOW, f"{size(disk.free)} free for {disk.purpose}: {disk.path}"
        )
        for disk in machine.disks
    ]


def _packages(machine: "Machine") -> list[dict]:
    """One line for the core, and one for each extra with the command that installs it."""
    from crosscal.machine import CORE, EXTRAS

    uses = {
        "study": "built-in models, texts of the hub, tasks",
        "book": "crosscal report",
        "quantized": "--storage compressed-tensors",
    }
    found = []
    for name, packages in {"core": CORE, **EXTRAS}.items():
        missing = [package for package in packages if machine.packages[package] is None]
        have = ", ".join(f"{package} {machine.packages[package]}" for package in packages if package not in missing)
        if missing:
            command = f"pip install 'crosscal[{name}]'" if name in EXTRAS else "pip install crosscal"
            text = f"no {', '.join(missing)}, needed for {uses.get(name, 'everything')}: {command}"
            found.append(_check(name, MISSING, text))
        else:
            found.append(_check(name, OK, have))
    return found


def _estimate(options: argparse.Namespace) -> "Estimate":
    from crosscal.cli.targets import check_method, read_target
    from crosscal.engine.request import Request
    from crosscal.machine import estimate
    from crosscal.methods.registry import find_method
    from crosscal.models.loading import find_config

    for name, least in (("windows", 1), ("length", 2), ("sources", 0)):
        if getattr(options, name) < least:
            raise InputError(f"--{name} is {getattr(options, name)}; give a whole number of at least {least}")
    method = find_method(options.method)
    asked = (options.sparsity, options.pattern, options.bits, options.rank, options.target)
    target = read_target(options) if any(part is not None for part in asked) else _usual_target(method.name)
    check_method(method, target, {}, "uniform")
    Request(model=options.model, method=method.name, target=target, schedule=options.schedule)  # is there such a one?
    return estimate(
        find_config(options.model, **loading(options)),
        method.name,
        target,
        n_windows=options.windows,
        length=options.length,
        n_sources=options.sources,
        device=options.device,
        dtype=options.dtype,
        schedule=options.schedule,
        trust_remote_code=options.trust_remote_code,
    )


def _usual_target(method: str):
    """What a method is mostly asked for: half of the weights, 4 bits in groups of 128, or half of the rank."""
    from crosscal.methods.registry import find_method
    from crosscal.types import Grid, LowRank, PerGroup, Unstructured

    kinds = find_method(method).targets
    return next(
        target for target in (Unstructured(0.5), Grid(4, PerGroup(128)), LowRank(0.5)) if isinstance(target, kinds)
    )


def _fits(machine: "Machine", estimate: "Estimate") -> dict:
    from crosscal.machine import size

    device = next((d for d in machine.devices if d.kind.split(":")[0] == estimate.device.split(":")[0]), None)
    free = 0 if device is None else device.free
    need = f"needs {size(estimate.memory_bytes)}, {size(free)} are free on {estimate.device}"
    if not free or estimate.memory_bytes < free:
        return _check("fits", OK, need)
    return _check("fits", MISSING, f"{need}; give fewer --windows, a shorter --length, or another --device")


def show(found: dict) -> str:
    """One line a check, and the estimate."""
    widest = max(len(check["name"]) for check in found["checks"])
    lines = [f"{check['state']:<8}{check['name']:<{widest}}  {check['text']}" for check in found["checks"]]
    if found["estimate"]:
        sizes = found["estimate"]
        lines += ["", f"{sizes['model']}: {sizes['parameters'] / 1e6:,.0f} million parameters", f"  {sizes['text']}"]
        shares = [f"{name} {sizes[name] / max(sizes['seconds'], 1e-9):.0%}" for name in ("forward", "sums", "solve")]
        lines += [f"  of the time: {', '.join(shares)}; loading, reading text and writing come on top"]
    return "\n".join(lines)
