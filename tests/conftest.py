"""Every test run also checks every tensor shape and argument type of the numeric core."""

from jaxtyping import install_import_hook

CORE = (
    "calibration",
    "methods",
    "models",
    "packing",
    "driver",
    "gather",
    "layerloss",
    "streams",
    "metrics.divergence",
    "metrics.likelihood",
)

install_import_hook([f"crosscal.{room}" for room in CORE], "beartype.beartype")
