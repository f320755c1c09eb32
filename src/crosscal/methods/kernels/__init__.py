"""Fused kernels for CUDA, and operations that never wait for the device; CPU code runs without any of them."""

from crosscal.methods.kernels.select import kth_smallest, kth_smallest_of_parts
from crosscal.methods.kernels.sweep_block import available, supports, sweep_block

__all__ = ["available", "kth_smallest", "kth_smallest_of_parts", "supports", "sweep_block"]
