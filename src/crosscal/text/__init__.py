"""Named text sources -> documents in two parts that never share one -> token windows with a seed and a fingerprint.

`documents`, `SOURCES` and `domain_of` need the standard library only; `load_text` and `TextWindows` load torch, and
`write_text`, which lets a model write its calibration text itself, loads transformers.
"""

from importlib import import_module

from crosscal.text.documents import SELF, SPLITS, check_source, documents, domain_of
from crosscal.text.hub import HUB_ROLES
from crosscal.text.own import SourceReport
from crosscal.text.sources import SOURCES

__all__ = [
    "HUB_ROLES",
    "SELF",
    "SOURCES",
    "SPLITS",
    "SourceReport",
    "TextWindows",
    "check_source",
    "documents",
    "domain_of",
    "load_text",
    "write_text",
]

_LAZY = {"load_text": "windows", "TextWindows": "windows", "write_text": "written"}


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'crosscal.text' has no attribute '{name}'")
    return getattr(import_module(f"crosscal.text.{_LAZY[name]}"), name)
