"""Safetensors files read and written in parts, so that no more than a part of them is ever in memory.

The format is eight bytes of length, a JSON header with dtype, shape and place of every tensor, and their bytes. The
library's own reader maps whole files into memory and its writer wants every tensor at once.
"""

import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from crosscal.errors import InputError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # bytes, the format's own limit
PART = 2**24  # bytes read at a time where a tensor is read in parts
PAGES = 2**18  # bytes from which on a tensor gets memory pages of its own
_AT_ONCE = 2**30  # bytes handed to the system in one call, which takes less than 2 GiB


class _Slot(NamedTuple):
    """Dtype, shape and first byte of a tensor in its file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Size of the tensor in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFile:
    """One safetensors file; `slots` maps the names of its tensors to their places."""

    def __init__(self, path: Path, slots: Mapping[str, _Slot]):
        self.path, self.slots = path, dict(slots)

    @classmethod
    def open(cls, path: Path) -> "TensorFile":
        """Open a file; raises `InputError` for one that is not whole or not in the format."""
        try:
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if length > min(_LONGEST_HEADER, path.stat().st_size - 8):
                    raise ValueError("its header is cut off")
                header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            slots = {name: _slot(entry, 8 + length) for name, entry in header.items()}
            if max((slot.start + slot.size for slot in slots.values()), default=8 + length) != path.stat().st_size:
                raise ValueError("its end is cut off")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is damaged or not a safetensors file ({error}); fetch it again") from error
        return cls(path, slots)

    @classmethod
    def create(
        cls, path: Path, contents: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], *, keep: bool = False
    ) -> "TensorFile":
        """Create a file with room for these tensors, all zeros; with `keep`, one that has exactly these stays."""
        # Wider numbers first, so that every tensor begins at a multiple of its own width.
        names = sorted(contents, key=lambda name: -contents[name][0].itemsize)
        header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
        place = 0
        for name in names:
            dtype, shape = contents[name]
            size = math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [place, place + size]}
            place += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        head = len(text).to_bytes(8, "little") + text
        if not (keep and path.exists() and path.stat().st_size == len(head) + place and _begins(path, head)):
            with open(path, "wb") as file:
                file.write(head)
                file.truncate(len(head) + place)
        return cls.open(path)

    def read(self, name: str) -> Tensor:
        """Return a whole tensor, on the CPU."""
        return self.rows(name, 0, None)

    def rows(self, name: str, first: int, last: int | None) -> Tensor:
        """Return the rows `first` up to `last` of a tensor, in memory of their own."""
        slot = self.slots[name]
        if not slot.shape:
            first, last, shape, each = 0, 1, (), slot.size
        else:
            last = slot.shape[0] if last is None else min(last, slot.shape[0])
            shape, each = (last - first, *slot.shape[1:]), slot.size // max(1, slot.shape[0])
        tensor = self.empty(shape, slot.dtype)
        with open(self.path, "rb", buffering=0) as file:
            file.seek(slot.start + first * each)
            left = _bytes(tensor)
            while len(left):
                count = file.readinto(left[:_AT_ONCE])
                if not count:
                    raise InputError(f"{self.path} ends within {name}; fetch it again")
                left = left[count:]
        return tensor

    def parts(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """Yield a tensor in parts of some rows, each with the number of its first row."""
        slot = self.slots[name]
        if slot.size <= PART or len(slot.shape) < 2:
            yield 0, self.read(name)
            return
        rows = max(1, PART * slot.shape[0] // slot.size)
        for first in range(0, slot.shape[0], rows):
            yield first, self.rows(name, first, first + rows)

    def write(self, name: str, tensor: Tensor, first: int = 0) -> None:
        """Write a tensor, or some of its rows from `first` on, to its place."""
        slot = self.slots[name]
        fits = first + len(tensor) <= slot.shape[0] if slot.shape else True
        if not fits or (tensor.dtype, tensor.ndim, tensor.shape[1:]) != (slot.dtype, len(slot.shape), slot.shape[1:]):
            raise ValueError(f"{name} is {slot.dtype} {slot.shape}, not {tensor.dtype} {tuple(tensor.shape)}")
        each = slot.size // max(1, slot.shape[0]) if slot.shape else slot.size
        with open(self.path, "r+b", buffering=0) as file:
            file.seek(slot.start + first * each)
            left = _bytes(tensor.cpu().contiguous())
            while len(left):
                left = left[file.write(left[:_AT_ONCE]) :]

    def flush(self) -> None:
        """Return when everything written is on the disk."""
        self.flush_path(self.path)

    @staticmethod
    def flush_path(path: Path) -> None:
        """Return when a file's contents, or a folder's list of names, are on the disk."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @staticmethod
    def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a tensor, not initialized, whose memory goes back to the system when it is freed.

        From the heap of the C library, the weights of block after block leave gaps that the next ones do not fill, and
        the process would grow with the model.
        """
        size = math.prod(shape) * dtype.itemsize
        if size < PAGES:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(mmap.mmap(-1, size, access=mmap.ACCESS_COPY), dtype=dtype).view(shape)


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _slot(entry: Mapping, base: int) -> _Slot:
    first, last = entry["data_offsets"]
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"tensors of type {entry['dtype']} are not known here")
    slot = _Slot(_DTYPES[entry["dtype"]], tuple(entry["shape"]), base + first)
    if slot.size != last - first or first < 0:
        raise ValueError("its header contradicts itself")
    return slot


def _begins(path: Path, head: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(len(head)) == head
