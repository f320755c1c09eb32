"""The one hot line of calibration, G += X^T X, in bfloat16 products and float32 sums where hardware has them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from crosscal.models.loading import fast_dtype


@contextmanager
def bf16_products() -> Iterator[None]:
    """Let CPU float32 matrix products round their factors to bfloat16, and restore the caller's setting after.

    For factors that hold bfloat16 values already the rounding changes nothing, and the products run on the CPU's
    bfloat16 units with float32 sums.
    """
    settings = getattr(getattr(torch.backends, "mkldnn", None), "matmul", None)
    if not hasattr(settings, "fp32_precision"):
        yield
        return
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


def add_gram(gram: Float[Tensor, "d_in d_in"], inputs: Float[Tensor, "tokens d_in"]) -> None:
    """gram += inputs^T inputs, in place, summed in float32 whatever the inputs' dtype."""
    if inputs.is_cuda and inputs.dtype in (torch.bfloat16, torch.float16):
        torch.addmm(gram, inputs.T, inputs, out_dtype=torch.float32, out=gram)
        return
    if inputs.dtype == torch.bfloat16 and inputs.device.type == "cpu" and fast_dtype("cpu") == torch.bfloat16:
        exact = inputs.float()
        with bf16_products():
            gram.addmm_(exact.T, exact)
        return
    wide = inputs.to(gram.dtype)
    gram.addmm_(wide.T, wide)
