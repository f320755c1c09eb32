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
