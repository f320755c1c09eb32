"""Peak memory of a piece of work: the device allocator's on a GPU, the process's resident set on a CPU."""

import ctypes
import os
import sys
import threading
import time
from pathlib import Path

import torch


class PeakMemory:
    """Measures the highest memory use between entering and leaving, above what was used on entry.

    On CUDA the allocator keeps the count. On the CPU the resident set is sampled twenty times a second, where the
    system tells it (Linux); elsewhere `peak_bytes` is 0.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.peak_bytes = 0

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._base = torch.cuda.memory_allocated(self.device)
        else:
            _return_free_memory()
            self._base = resident_bytes()
            self._stop = threading.Event()
            self._sampler = threading.Thread(target=self._sample, daemon=True)
            self._sampler.start()
        return self

    def _sample(self) -> None:
        while not self._stop.is_set():
            self.peak_bytes = max(self.peak_bytes, resident_bytes() - self._base)
            time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.peak_bytes = torch.cuda.max_memory_allocated(self.device) - self._base
        else:
            self._stop.set()
            self._sampler.join()


def _return_free_memory() -> None:
    """Give what the C library keeps of freed memory back to the system, so that it is not mistaken for use."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
        if trim is not None:
            trim(0)


def resident_bytes() -> int:
    """Bytes of physical memory this process holds now; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def free_bytes(device: torch.device) -> int:
    """Bytes that may still be taken on a device: what is free, within the limits set for this process."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return min([_available(), *_room_in_group(), *_room_in_limit()])


def _available() -> int:
    """What the system could hand out; without a system that tells, its pages or a cautious 2 GiB."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 2**31


def _room_in_group() -> list[int]:
    """What the process's control group, as of a container or a cluster job, still allows."""
    group = Path("/sys/fs/cgroup")
    try:
        return [int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())]
    except (OSError, ValueError):  # no such group, or "max"
        return []


def _room_in_limit() -> list[int]:
    """What a limit on the process's data (`ulimit -d`) still allows."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
        lines = Path("/proc/self/status").read_text().splitlines()
        used = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))
    except (ImportError, OSError, StopIteration):
        return []
    return [] if limit == resource.RLIM_INFINITY else [limit - used]
