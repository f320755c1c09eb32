"""Where things live: found from the package and the environment, never from the working folder's surroundings."""

import os
from pathlib import Path

CACHE_VARIABLE = "CROSSCAL_CACHE"
RESULTS_VARIABLE = "CROSSCAL_RESULTS"


def cache_dir() -> Path:
    """The user's cache folder: `$CROSSCAL_CACHE`, else `$XDG_CACHE_HOME/crosscal`, else `~/.cache/crosscal`."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "crosscal"


def checkout() -> Path | None:
    """The folder of the git checkout the package runs from, or None for an installed copy."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").exists() and (root / "notebooks").exists() else None


def results_dir(preset: str) -> Path:
    """The folder that holds a preset's runs: under `$CROSSCAL_RESULTS`, the checkout's `results/`, or `./results/`."""
    if chosen := os.environ.get(RESULTS_VARIABLE):
        return Path(chosen).expanduser() / preset
    return (checkout() or Path.cwd()) / "results" / preset


def started_by_torchrun() -> bool:
    """Whether this process is one of several that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1
