"""Which device and which number format a model is loaded to: detected, never assumed."""

import torch

from crosscal.errors import InputError, suggest


def fast_dtype(device: str | torch.device = "cpu") -> torch.dtype:
    """bfloat16 where the hardware multiplies it faster than float32, else float32: detected, never assumed."""
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if torch.device(device).type == "cpu":
        # Private, but the only spelling that every supported torch has; absent means "not fast".
        fast = (getattr(torch.cpu, probe, bool)() for probe in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
        return torch.bfloat16 if any(fast) else torch.float32
    return torch.float32


def resolve_device(device: str | None) -> torch.device:
    """`None` or "auto" is the first CUDA device when there is one, else the CPU.

    Raises `InputError` for a device this machine does not have.
    """
    if device in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(1, device=resolved)
    except (RuntimeError, AssertionError):
        raise InputError(
            f"device '{device}' is not available here; use 'auto', 'cpu' or an existing 'cuda:N'"
        ) from None
    return resolved


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """`None` or "auto" is `fast_dtype(device)`; otherwise one of float32, bfloat16, float16."""
    if dtype in (None, "auto"):
        return fast_dtype(device)
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    name = str(dtype).removeprefix("torch.")
    if name not in known:
        raise InputError(
            f"dtype '{dtype}' is unknown; give one of auto, {', '.join(known)}{suggest(name, list(known))}"
        )
    return known[name]
