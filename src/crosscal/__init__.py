"""crosscal: what compressing a language model costs, and how much better calibration buys back.

Importing the package is light; torch, transformers, datasets and lm-eval load when first needed.

    from crosscal import load_model, load_text, compress, evaluate
"""

from importlib import import_module

from crosscal import _moved
from crosscal.errors import InputError

__version__ = "0.1.0"

_FRONT = {
    "load_model": "crosscal.models",
    "load_text": "crosscal.text",
    "compress": "crosscal.engine.driver",
    "evaluate": "crosscal.metrics.evaluate",
}

__all__ = ["InputError", "__version__", "compress", "evaluate", "load_model", "load_text"]

_moved.install()


def __getattr__(name: str):
    if name not in _FRONT:
        raise AttributeError(f"module 'crosscal' has no attribute '{name}'")
    return getattr(import_module(_FRONT[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
