"""This machine: its devices with the dtypes they are fast in, memory, disks and packages, all detected."""

import os
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from huggingface_hub import constants

from crosscal.models.loading import fast_dtype
from crosscal.paths import cache_dir

_CORE = ("torch", "transformers", "safetensors", "numpy", "scipy", "greenlet", "tqdm", "jaxtyping")
_EXTRAS = {
    "study": ("gguf", "accelerate", "datasets", "lm-eval"),
    "book": ("pandas", "matplotlib", "seaborn", "papermill", "ipykernel"),
    "quantized": ("compressed-tensors",),
}
"""The packages of each optional extra."""


@dataclass(frozen=True)
class _Device:
    """A device: torch's name and the maker's, bytes of memory, and whether it multiplies bfloat16 in hardware."""

    kind: str
    name: str
    free: int
    total: int
    bf16: bool

    @property
    def dtype(self) -> str:
        """Default dtype of models on it."""
        return "bfloat16" if self.bf16 else "float32"


@dataclass(frozen=True)
class _Disk:
    """A cache folder and the free bytes of its disk."""

    purpose: str
    path: Path
    free: int


@dataclass(frozen=True)
class Machine:
    """Devices, cores, disks and packages of a machine; `load` is the number of running processes, None if unknown."""

    devices: tuple[_Device, ...]
    cores: int
    threads: int
    load: float | None
    disks: tuple[_Disk, ...]
    packages: dict[str, str | None]


def this_machine() -> Machine:
    """Return the facts about this machine."""
    return Machine(
        devices=(*_gpus(), _cpu()),
        cores=_usable_cores(),
        threads=torch.get_num_threads(),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        disks=(
            _disk("embedded models and texts ($CROSSCAL_CACHE)", cache_dir()),
            _disk("models of the hub ($HF_HOME)", Path(constants.HF_HUB_CACHE)),
        ),
        packages={name: _installed(name) for name in (*_CORE, *(name for names in _EXTRAS.values() for name in names))},
    )


def _installed(package: str) -> str | None:
    """Version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _usable_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host_memory() -> tuple[int, int]:
    """Return (free, total) bytes of main memory that this process may use; 0 where the system does not say."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0, 0
    free = _meminfo("MemAvailable") or total
    for limit, used in _CGROUPS:  # a container's share may be smaller than the machine
        allowed, taken = _number(limit), _number(used)
        if allowed is not None and allowed < total:
            total, free = allowed, min(free, allowed - (taken or 0))
    return max(0, free), total


_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None


def _meminfo(entry: str) -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{entry}:"))
    except (OSError, StopIteration, ValueError):
        return None


def _cpu() -> _Device:
    free, total = host_memory()
    return _Device("cpu", _cpu_name(), free, total, fast_dtype("cpu") == torch.bfloat16)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return "CPU"


def _gpus() -> list[_Device]:
    devices = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        kind = f"cuda:{index}"
        devices.append(
            _Device(kind, torch.cuda.get_device_name(index), free, total, fast_dtype(kind) == torch.bfloat16)
        )
    return devices


def _disk(purpose: str, path: Path) -> _Disk:
    """The disk on which a folder is or would be made."""
    existing = next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))
    return _Disk(purpose, path, shutil.disk_usage(existing).free)
