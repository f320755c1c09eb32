"""What ran: package versions, machine, threads, commit and time, so that a number can be traced and rerun."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from crosscal import __version__
from crosscal.paths import checkout

_PACKAGES = ("torch", "transformers", "lm-eval", "numpy")


def versions() -> str:
    """`"crosscal 0.1.0, torch 2.13.0, ..."`; a package that is not installed is left out."""
    found = [f"crosscal {__version__}"]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def _commit() -> str:
    """The checkout's commit, with "-dirty" when the package differs from it; "unknown" outside a checkout."""

    def git(*arguments: str) -> str:
        how = {"check": True, "capture_output": True, "text": True, "timeout": 30}
        return subprocess.run(["git", "-C", str(checkout()), *arguments], **how).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "src")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def device_name(device) -> str:
    """The GPU's name, or the CPU's with its core count: `"NVIDIA H200"`, `"Intel(R) Xeon(R) Processor, 2 cores"`."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    units = ", bf16 units" if getattr(torch.cpu, "_is_amx_tile_supported", bool)() else ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads{units}"


def provenance(device) -> dict:
    """Everything above as one dictionary, with the time in UTC.

    `load` is how many processes wanted a processor in the last minute, on average: times of a run that shared its
    machine mean little. None where the system does not tell.
    """
    return {
        "versions": versions(),
        "python": platform.python_version(),
        "system": platform.system(),
        "device": device_name(device),
        "commit": _commit(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "finished": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
