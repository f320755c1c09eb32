"""Every test run also checks the tensor shapes and argument types of the numeric core; marks by folder and fixture."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # before torch is imported, here and in subprocesses
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // workers)))

CORE = (
    "calibration",
    "methods",
    "models",
    "output.packing",
    "engine",
    "metrics.divergence",
    "metrics.text_scores",
)

install_import_hook([f"crosscal.{room}" for room in CORE], "beartype.beartype")


def pytest_collection_modifyitems(items):
    """Mark the tests of the pages `book`, and those of them that open Chromium `browser`.

    Where tests run side by side, those of a file stay together, and so do those of the pages, which are built once.
    """
    for item in items:
        of_pages = Path(__file__).parent / "book" in item.path.parents
        if of_pages:
            item.add_marker("book")
        item.add_marker(pytest.mark.xdist_group("book" if of_pages else item.path.name))
        if "chromium" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
