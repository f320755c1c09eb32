"""Compression methods: pure functions from a weight and its input statistics to a new weight."""

from crosscal.methods.awq import awq
from crosscal.methods.dpruner import dpruner
from crosscal.methods.gptq import gptq
from crosscal.methods.joint_rank import joint_rank
from crosscal.methods.lowrank import asvd, fwsvd, svd
from crosscal.methods.magnitude import magnitude
from crosscal.methods.rtn import rtn
from crosscal.methods.sparsegpt import sparsegpt
from crosscal.methods.wanda import wanda

__all__ = ["asvd", "awq", "dpruner", "fwsvd", "gptq", "joint_rank", "magnitude", "rtn", "sparsegpt", "svd", "wanda"]
