"""`crosscal doctor`: what this machine can do, what is missing, and what a compression would take."""

import argparse
from collections.abc import Iterator

from crosscal.cli.request import _estimated, _read_target
from crosscal.engine.request import Request
from crosscal.errors import whole_number
from crosscal.machine import Estimate, Machine, size, this_machine
from crosscal.machine.facts import _CORE, _EXTRAS
from crosscal.methods.registry import check_request, find_method
from crosscal.types import Grid, LowRank, PerGroup, Unstructured, Width

_OK, _MISSING, _SLOW = "ok", "missing", "slow"
_LITTLE_DISK, _LITTLE_MEMORY = 5 * 2**30, 4 * 2**30
_BUSY = 0.5  # of the cores in use by others: times will be longer
_USUAL_TARGETS = (Unstructured(0.5), Grid(4, PerGroup(128)), LowRank(0.5), Width(0.8))
_USES = {
    "core": "everything",
    "study": "built-in models, texts of the hub, tasks",
    "book": "crosscal report",
    "quantized": "--storage compressed-tensors",
}
"""The use of the core and of each optional extra."""


def _run_doctor(options: argparse.Namespace) -> dict:
    """Look at the machine, and estimate when a model is named."""
    machine, estimated = this_machine(), None
    checks = [*_devices(machine), *_disks_and_packages(machine)]
    if options.model is not None:
        estimated = _estimated_for(options)
        checks.append(_fits(machine, estimated))
        estimated = estimated.to_json() | {"text": str(estimated), "model": options.model}
    checks = [dict(zip(("name", "state", "text"), check, strict=True)) for check in checks]
    return {"checks": checks, "estimate": estimated}


def _devices(machine: Machine) -> Iterator[tuple[str, str, str]]:
    for device in machine.devices:
        pace = "bfloat16 in hardware" if device.bf16 else "no bfloat16 units: float32, several times slower"
        if device.kind == "cpu":
            pace = f"{machine.cores} cores, {machine.threads} threads; {pace}"
        little = device.total > 0 and device.free < _LITTLE_MEMORY
        text = f"{device.name}; {size(device.free)} of {size(device.total)} free; {pace}"
        yield device.kind, _OK if device.bf16 and not little else _SLOW, text
    if len(machine.devices) == 1:
        none = "none that torch can use; models of up to a few billion parameters are practical on the CPU"
        yield "GPU", _SLOW, none
    if machine.load is not None and machine.load > _BUSY * machine.cores:
        busy = f"{machine.load:.1f} processes compete for {machine.cores} cores: everything takes longer than estimated"
        yield "load", _SLOW, busy


def _disks_and_packages(machine: Machine) -> Iterator[tuple[str, str, str]]:
    """One line for each disk, the core and each extra, with the command that installs it."""
    for disk in machine.disks:
        enough = _OK if disk.free > _LITTLE_DISK else _SLOW
        yield "disk", enough, f"{size(disk.free)} free for {disk.purpose}: {disk.path}"
    for name, packages in {"core": _CORE, **_EXTRAS}.items():
        missing = [package for package in packages if machine.packages[package] is None]
        command = f"pip install 'crosscal[{name}]'" if name in _EXTRAS else "pip install crosscal"
        lack = f"{', '.join(missing)} not installed, needed for {_USES[name]}: {command}"
        have = ", ".join(f"{package} {machine.packages[package]}" for package in packages)
        yield name, _MISSING if missing else _OK, lack if missing else have


def _estimated_for(options: argparse.Namespace) -> Estimate:
    for name, least in (("windows", 1), ("length", 2), ("sources", 0)):
        whole_number(f"--{name}", getattr(options, name), least)
    method = find_method(options.method)
    usual = next(target for target in _USUAL_TARGETS if isinstance(target, method.targets))
    target = _read_target(options) or usual
    check_request(method, target, {}, [])
    Request(model=options.model, method=method.name, target=target, schedule=options.schedule)  # checks the schedule
    return _estimated(options, target, options.sources)


def _fits(machine: Machine, estimated: Estimate) -> tuple[str, str, str]:
    kind = estimated.device.split(":")[0]
    free = next((device.free for device in machine.devices if device.kind.split(":")[0] == kind), 0)
    need = f"{size(estimated.memory_bytes)} needed, {size(free)} free on {estimated.device}"
    if not free or estimated.memory_bytes < free:
        return "fits", _OK, need
    return "fits", _MISSING, f"{need}; give fewer --windows, a shorter --length, or another --device"


def _show_doctor(result: dict) -> str:
    """One line for each check, and the estimate."""
    widest = max(len(check["name"]) for check in result["checks"])
    lines = [f"{check['state']:<8}{check['name']:<{widest}}  {check['text']}" for check in result["checks"]]
    if sizes := result["estimate"]:
        lines += ["", f"{sizes['model']}: {sizes['parameters'] / 1e6:,.0f} million parameters", f"  {sizes['text']}"]
        parts = {"forward": "forward passes", "sums": "Gram sums", "solve": "solver"}
        shares = [f"{text} {sizes[name] / max(sizes['seconds'], 1e-9):.0%}" for name, text in parts.items()]
        lines += [f"  time: {', '.join(shares)}; loading, reading text and writing are not included"]
    return "\n".join(lines)
