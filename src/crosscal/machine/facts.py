"""This machine: its devices with the dtypes they are fast in, memory, disks and packages, all detected."""

import os
import re
import shutil
from collections.abc import Iterator
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
    hub = Path(constants.HF_HUB_CACHE)
    caches = {"embedded models and texts ($CROSSCAL_CACHE)": cache_dir(), "models of the hub ($HF_HOME)": hub}
    return Machine(
        devices=(*_gpus(), _cpu()),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        disks=tuple(_Disk(purpose, path, _free_bytes(path)) for purpose, path in caches.items()),
        packages={name: _installed(name) for names in (_CORE, *_EXTRAS.values()) for name in names},
    )


def _installed(package: str) -> str | None:
    """Version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _free_bytes(path: Path) -> int:
    """Free bytes of the disk on which a folder is or would be made."""
    return shutil.disk_usage(next(folder for folder in (path, *path.parents, Path("/")) if folder.exists())).free


_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def host_memory() -> tuple[int, int]:
    """Return (free, total) bytes of main memory that this process may use; 0 where the system does not say."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0, 0
    free = 1024 * (_number("/proc/meminfo", "MemAvailable:") or 0) or total
    for limit, used in _CGROUPS:  # a container's share may be smaller than the machine
        allowed = _number(limit)
        if allowed is not None and allowed < total:
            total, free = allowed, min(free, allowed - (_number(used) or 0))
    return max(0, free), total


def free_bytes(device: torch.device) -> int:
    """Return the bytes that may still be taken on a device, within the limits set for this process."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return min([host_memory()[0], *_room_in_limit()])


def _room_in_limit() -> list[int]:
    """Return what a limit on the process's data (`ulimit -d`) still allows; nothing where there is none."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
        lines = Path("/proc/self/status").read_text().splitlines()
        used = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))
    except (ImportError, OSError, StopIteration):
        return []
    return [] if limit == resource.RLIM_INFINITY else [limit - used]


def _number(path: str, entry: str = "") -> int | None:
    """The number in a file, or behind an entry of it."""
    try:
        text = Path(path).read_text()
        return int(text[text.index(entry) :].removeprefix(entry).split()[0])
    except (OSError, ValueError, IndexError):
        return None


def _cpu() -> _Device:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return _Device("cpu", found[1] if found else "CPU", *host_memory(), fast_dtype("cpu") == torch.bfloat16)


def _gpus() -> Iterator[_Device]:
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        kind, memory = f"cuda:{index}", torch.cuda.mem_get_info(index)
        yield _Device(kind, torch.cuda.get_device_name(index), *memory, fast_dtype(kind) == torch.bfloat16)
