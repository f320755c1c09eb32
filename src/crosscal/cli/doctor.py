"""`crosscal doctor`: what this machine can do, what is missing, and what a compression would take."""

import argparse

from crosscal.cli.request import _permissions, _read_target
from crosscal.engine.request import Request
from crosscal.errors import whole_number
from crosscal.machine import Estimate, Machine, estimate, size, this_machine
from crosscal.machine.facts import _CORE, _EXTRAS
from crosscal.methods.registry import check_request, find_method
from crosscal.models import find_config
from crosscal.types import Grid, LowRank, PerGroup, Unstructured

_OK, _MISSING, _SLOW = "ok", "missing", "slow"
_LITTLE_DISK, _LITTLE_MEMORY = 5 * 2**30, 4 * 2**30
_BUSY = 0.5  # of the cores in use by others: times will be longer
_USUAL_TARGETS = (Unstructured(0.5), Grid(4, PerGroup(128)), LowRank(0.5))
_USES = {
    "study": "built-in models, texts of the hub, tasks",
    "book": "crosscal report",
    "quantized": "--storage compressed-tensors",
}
"""The use of each optional extra."""


def _run(options: argparse.Namespace) -> dict:
    """Look at the machine, and estimate when a model is named."""
    machine = this_machine()
    result = {"checks": [*_devices(machine), *_disks(machine), *_packages(machine)], "estimate": None}
    if options.model is not None:
        estimated = _estimated(options)
        result["estimate"] = estimated.to_json() | {"text": str(estimated), "model": options.model}
        result["checks"].append(_fits(machine, estimated))
    return result


def _check(name: str, state: str, text: str) -> dict:
    return {"name": name, "state": state, "text": text}


def _devices(machine: Machine) -> list[dict]:
    checks = []
    for device in machine.devices:
        pace = "bfloat16 in hardware" if device.bf16 else "no bfloat16 units: float32, several times slower"
        if device.kind == "cpu":
            pace = f"{machine.cores} cores, {machine.threads} threads; {pace}"
        text = f"{device.name}; {size(device.free)} of {size(device.total)} free; {pace}"
        little = device.total > 0 and device.free < _LITTLE_MEMORY
        checks.append(_check(device.kind, _OK if device.bf16 and not little else _SLOW, text))
    if len(machine.devices) == 1:
        none = "none that torch can use; models of up to a few billion parameters are practical on the CPU"
        checks.append(_check("GPU", _SLOW, none))
    if machine.load is not None and machine.load > _BUSY * machine.cores:
        busy = f"{machine.load:.1f} processes compete for {machine.cores} cores: everything takes longer than estimated"
        checks.append(_check("load", _SLOW, busy))
    return checks


def _disks(machine: Machine) -> list[dict]:
    return [
        _check(
            "disk",
            _OK if disk.free > _LITTLE_DISK else _SLOW,
            f"{size(disk.free)} free for {disk.purpose}: {disk.path}",
        )
        for disk in machine.disks
    ]


def _packages(machine: Machine) -> list[dict]:
    """One line for the core, and one for each extra with the command that installs it."""
    checks = []
    for name, packages in {"core": _CORE, **_EXTRAS}.items():
        missing = [package for package in packages if machine.packages[package] is None]
        have = ", ".join(f"{package} {machine.packages[package]}" for package in packages if package not in missing)
        command = f"pip install 'crosscal[{name}]'" if name in _EXTRAS else "pip install crosscal"
        lack = f"{', '.join(missing)} not installed, needed for {_USES.get(name, 'everything')}: {command}"
        checks.append(_check(name, _MISSING, lack) if missing else _check(name, _OK, have))
    return checks


def _estimated(options: argparse.Namespace) -> Estimate:
    whole_number("--windows", options.windows, 1)
    whole_number("--length", options.length, 2)
    whole_number("--sources", options.sources)
    method = find_method(options.method)
    usual = next(target for target in _USUAL_TARGETS if isinstance(target, method.targets))
    target = _read_target(options) or usual
    check_request(method, target, {}, [])
    Request(model=options.model, method=method.name, target=target, schedule=options.schedule)  # checks the schedule
    return estimate(
        find_config(options.model, **_permissions(options)),
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


def _fits(machine: Machine, estimated: Estimate) -> dict:
    kind = estimated.device.split(":")[0]
    free = next((device.free for device in machine.devices if device.kind.split(":")[0] == kind), 0)
    need = f"{size(estimated.memory_bytes)} needed, {size(free)} free on {estimated.device}"
    if not free or estimated.memory_bytes < free:
        return _check("fits", _OK, need)
    return _check("fits", _MISSING, f"{need}; give fewer --windows, a shorter --length, or another --device")


def _show(result: dict) -> str:
    """One line for each check, and the estimate."""
    widest = max(len(check["name"]) for check in result["checks"])
    lines = [f"{check['state']:<8}{check['name']:<{widest}}  {check['text']}" for check in result["checks"]]
    if sizes := result["estimate"]:
        lines += ["", f"{sizes['model']}: {sizes['parameters'] / 1e6:,.0f} million parameters", f"  {sizes['text']}"]
        parts = {"forward": "forward passes", "sums": "Gram sums", "solve": "solver"}
        shares = [f"{text} {sizes[name] / max(sizes['seconds'], 1e-9):.0%}" for name, text in parts.items()]
        lines += [f"  time: {', '.join(shares)}; loading, reading text and writing are not included"]
    return "\n".join(lines)
