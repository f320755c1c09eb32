"""Compression methods: pure functions from a weight and its input statistics to a new weight."""

from crosscal.methods.magnitude import magnitude
from crosscal.methods.registry import METHODS, Method, find_method
from crosscal.methods.sparsegpt import sparsegpt
from crosscal.methods.wanda import wanda

__all__ = ["METHODS", "Method", "find_method", "magnitude", "sparsegpt", "wanda"]
