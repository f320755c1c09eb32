"""Every test run also checks the tensor shapes and argument types of the numeric core; marks by folder and fixture."""

from pathlib import Path

from jaxtyping import install_import_hook

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
    """Mark the tests of the pages `book`, and those of them that open Chromium `browser`."""
    for item in items:
        if Path(__file__).parent / "book" in item.path.parents:
            item.add_marker("book")
        if "chromium" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
