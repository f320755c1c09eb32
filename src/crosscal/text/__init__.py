"""Named text sources -> documents in two parts that never share one -> token windows with a seed and a fingerprint.

`documents`, `SOURCES` and `domain_of` need the standard library only; `load_text` and `TextWindows` load torch.
"""

from crosscal.text.documents import documents
from crosscal.text.registry import SOURCES, SPLITS, Source, describe, domain_of

__all__ = ["SOURCES", "SPLITS", "Source", "TextWindows", "describe", "documents", "domain_of", "load_text"]


def __getattr__(name: str):
    if name not in ("load_text", "TextWindows"):
        raise AttributeError(f"module 'crosscal.text' has no attribute '{name}'")
    from crosscal.text import windows

    return getattr(windows, name)
