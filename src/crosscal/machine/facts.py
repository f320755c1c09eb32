"""What this machine can do: its devices and their number formats, memory, disk and packages. Nothing is assumed."""

import os
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from huggingface_hub import constants

from crosscal.models.loading import fast_dtype
from crosscal.paths import cache_dir

_CORE = ("torch", "transformers", "safetensors", "numpy", "greenlet", "tqdm", "jaxtyping")
_EXTRAS = {
    "study": ("gguf", "accelerate", "pyarrow", "datasets", "lm-eval"),
    "book": ("pandas", "matplotlib", "seaborn", "papermill", "ipykernel"),
    "quantized": ("compressed-tensors",),
}
"""The packages of each optional extra, and so what `pip install 'crosscal[EXTRA]'` adds."""


@dataclass(frozen=True)
class Device:
    """A device that models run on: torch's name for it, its maker's, its memory, and the number format it is fast in.

    `bf16` says whether it multiplies bfloat16 in hardware. `free` and `total` are bytes.
    """

    kind: str
    name: str
    free: int
    total: int
    bf16: bool

    @property
    def dtype(self) -> str:
        """The number format that models are loaded to by default."""
        return "bfloat16" if self.bf16 else "float32"


@dataclass(frozen=True)
class Disk:
    """A cache folder and the free bytes of its disk."""

    purpose: str
    path: Path
    free: int


@dataclass(frozen=True)
class Machine:
    """Everything above of this machine; `load` is how many processes want a core now, None where nobody tells."""

    devices: tuple[Device, ...]
    cores: int
    threads: int
    load: float | None
    disks: tuple[Disk, ...]
    packages: dict[str, str | None]


def this_machine() -> Machine:
    """Look at the machine; takes no measurable time besides importing torch."""
    return Machine(
        devices=(*_gpus(), _cpu()),
        cores=usable_cores(),
        threads=torch.get_num_threads(),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        disks=(
            _disk("embedded models and texts ($CROSSCAL_CACHE)", cache_dir()),
            _disk("models of the hub ($HF_HOME)", Path(constants.HF_HUB_CACHE)),
        ),
        packages={name: installed(name) for name in (*_CORE, *(name for names in _EXTRAS.values() for name in names))},
    )


def installed(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host_memory() -> tuple[int, int]:
    """(free, total) bytes of main memory, as far as this process may use it; 0 where the system does not tell."""
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
    """The number in a file; None where there is no file or no number in it."""
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


def _cpu() -> Device:
    free, total = host_memory()
    return Device("cpu", _cpu_name(), free, total, fast_dtype("cpu") == torch.bfloat16)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return "CPU"


def _gpus() -> list[Device]:
    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        kind = f"cuda:{index}"
        found.append(Device(kind, torch.cuda.get_device_name(index), free, total, fast_dtype(kind) == torch.bfloat16))
    return found


def _disk(purpose: str, path: Path) -> Disk:
    """The disk on which a folder is or would be made."""
    existing = next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))
    return Disk(purpose, path, shutil.disk_usage(existing).free)
