"""Results of a compression: one report for each layer, and the time and memory of the whole."""

import ctypes
import math
import os
import re
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

MIX_WEIGHT = "weight of "  # and the name of a source: a fact of layers whose mix weights were found
_NAMES = 2  # of a kind of matrix that was left out, at most


@dataclass(frozen=True)
class LayerReport:
    """Result of one layer.

    `losses` gives for each text source tr(dW G dW^T) / n, the squared output error per token; `relative_error` is the
    mixed loss over the mixed output tr(W G W^T) / n, or None when losses were not measured. `facts` holds values the
    method returns: the damping that was needed, the rank, AWQ's exponent. `statistics` identifies the inputs: for each
    source 16 hex digits of SHA-256 over the diagonal of the Gram matrix, empty where no text ran. `tokens` counts each
    source's tokens that reached the layer; `fallback` names what took the place of their statistics where these were of
    too few tokens for an expert: "experts of the layer" or "weights alone".
    """

    name: str
    sparsity: float
    relative_error: float | None = None
    losses: dict[str, float] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)
    statistics: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    fallback: str = ""

    @property
    def damp(self) -> float | None:
        """Damping that a second-order solver needed."""
        return self.facts.get("damp")


@dataclass
class CompressionReport:
    """Layer reports in order, the seconds it took and the peak memory above the start, in bytes.

    `inventory` tells in plain values which matrices were left out and why (`crosscal.models.Inventory.told`).
    """

    layers: list[LayerReport] = field(default_factory=list)
    seconds: float = 0.0
    peak_bytes: int = 0
    inventory: dict = field(default_factory=dict)

    @property
    def sparsity(self) -> float:
        """Mean sparsity over layers, unweighted."""
        return sum(layer.sparsity for layer in self.layers) / max(1, len(self.layers))

    def mix_weights(self) -> dict[str, float]:
        """Return the mean over layers of the mix weights that were found for them; none where they were given."""
        found: dict[str, list[float]] = {}
        for layer in self.layers:
            for name, share in layer.facts.items():
                if name.startswith(MIX_WEIGHT):
                    found.setdefault(name.removeprefix(MIX_WEIGHT), []).append(share)
        return {name: sum(shares) / len(shares) for name, shares in found.items()}

    def fallbacks(self) -> dict[str, int]:
        """Return how many matrices of experts saw too few tokens, by what took the place of their statistics."""
        return dict(Counter(layer.fallback for layer in self.layers if layer.fallback))

    def share_sentence(self) -> str:
        """Return which share of the decoder's weights was compressed."""
        weights, compressed = self.inventory["weights"], self.inventory["compressed"]
        share = "all" if compressed == weights else _percent(compressed / max(1, weights))
        return f"{share} of the decoder's {weights:,} weights"

    def width_sentence(self) -> str:
        """Return how many channels and weights are left of a model that is cut to another width; empty of others."""
        told = self.inventory
        if "channels" not in told:
            return ""
        before, left = told["channels"]
        return (
            f"{left:,} of the {before:,} channels of {told['layers']} feed-forward layers are left, "
            f"{told['weights_left']:,} of the decoder's {told['weights']:,} weights"
        )

    def fallback_sentence(self) -> str:
        """Return how many matrices of experts saw too few tokens and what served instead; empty where none did."""
        parts = [f"{basis} ({count})" for basis, count in self.fallbacks().items()]
        few = f"too few tokens reached {sum(self.fallbacks().values())} matrices of experts; used instead: "
        return few + ", ".join(parts) if parts else ""

    def left_out(self) -> list[tuple[str, ...]]:
        """Return a table of what was left out: reason, matrices, weights, share of the decoder's weights, names.

        Names that differ in numbers are one, with `*`. Embeddings, head and what is not of the text decoder have no
        share.
        """
        rows, total = [], max(1, self.inventory["weights"])
        counted_first = sorted(self.inventory["left_out"].items(), key=lambda item: not item[1]["counted"])
        for reason, entry in counted_first:
            kinds: dict[str, list[str]] = {}
            for name in entry["names"]:
                kinds.setdefault(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name), []).append(name)
            names = [kind if len(alike) > 1 else alike[0] for kind, alike in kinds.items()]
            more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
            share = _percent(entry["weights"] / total) if entry["counted"] else "-"
            numbers = (str(len(entry["names"])), f"{entry['weights']:,}", share)
            rows.append((reason, *numbers, ", ".join(names[:_NAMES]) + more))
        return rows


def _percent(share: float) -> str:
    """Return a share in per cent, rounded down, so that only a whole one is 100.

    >>> _percent(1.0), _percent(0.99999), _percent(0.000012)
    ('100.0 %', '99.9 %', '0.0012 %')
    """
    return f"{math.floor(1000 * share) / 10:.1f} %" if share >= 0.01 else f"{100 * share:.2g} %"


class PeakMemory:
    """Context manager that measures peak memory use above that on entry, in bytes: `peak_bytes`.

    On CUDA the allocator counts. On the CPU the resident set is sampled twenty times a second, where /proc has it
    (Linux); elsewhere `peak_bytes` is 0.
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
            self._base = _resident_bytes()
            self._stop = threading.Event()
            self._sampler = threading.Thread(target=self._sample, daemon=True)
            self._sampler.start()
        return self

    def _sample(self) -> None:
        while not self._stop.is_set():
            self.peak_bytes = max(self.peak_bytes, _resident_bytes() - self._base)
            time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.peak_bytes = torch.cuda.max_memory_allocated(self.device) - self._base
        else:
            self._stop.set()
            self._sampler.join()


def _return_free_memory() -> None:
    """Return freed memory that the C library keeps to the system, so that it is not mistaken for use."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
        if trim is not None:
            trim(0)


def _resident_bytes() -> int:
    """Return the resident set size; 0 where /proc does not exist."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
