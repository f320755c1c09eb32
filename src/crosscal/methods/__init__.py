"""Compression methods: pure functions from a weight and its input statistics to a new weight.

Importing the package is light: the file of a method, and torch with it, is loaded when its function is first used.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crosscal.methods.awq import awq
    from crosscal.methods.checks import check_method
    from crosscal.methods.dpruner import dpruner
    from crosscal.methods.gptq import gptq
    from crosscal.methods.lowrank import asvd, fwsvd, joint_rank, svd
    from crosscal.methods.magnitude import magnitude
    from crosscal.methods.registry import Evidence, Method, register_method
    from crosscal.methods.rtn import rtn
    from crosscal.methods.sparsegpt import sparsegpt
    from crosscal.methods.wanda import wanda

__all__ = ["Evidence", "Method", "asvd", "awq", "check_method", "dpruner", "fwsvd", "gptq", "joint_rank", "magnitude"]
__all__ += ["register_method", "rtn", "sparsegpt", "svd", "wanda"]

_FILES: dict[str, str] = dict.fromkeys(("svd", "fwsvd", "asvd", "joint_rank"), "lowrank")
_FILES |= dict.fromkeys(("Evidence", "Method", "register_method"), "registry") | {"check_method": "checks"}


class _Package(ModuleType):
    """A package whose functions keep their names, although files of it have the same ones."""

    def __setattr__(self, name: str, value: object) -> None:
        # On loading crosscal.methods.gptq the import system sets the attribute `gptq` to that module.
        super().__setattr__(name, getattr(value, name) if isinstance(value, ModuleType) and name in __all__ else value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_FILES.get(name, name)}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
