"""Chapter 1, "Perplexity hides task loss": which runs it needs, and how to get them."""

from dataclasses import dataclass
from pathlib import Path

from crosscal.paths import results_dir
from crosscal.study.grid import find_stored, run_missing
from crosscal.study.parameters import Settings, parse_shares
from crosscal.study.presets import find_preset
from crosscal.types import RunConfig, Unstructured

METHODS = ("magnitude", "wanda", "sparsegpt")
DATA_FREE = ("magnitude",)


@dataclass(frozen=True)
class StoredRuns:
    """Where the runs of a chapter are stored, and which they are."""

    folder: Path
    run_ids: list[str]


def chapter_configs(settings: Settings, device: str = "auto", dtype: str = "auto") -> list[RunConfig]:
    """The dense model, then every method at every pattern of the preset and at the sparsity asked for.

    >>> [f"{c.method} {c.pattern}" for c in chapter_configs(Settings(preset="smoke", sparsity=0.6))][:3]
    ['dense 0%', 'magnitude 50%', 'wanda 50%']
    """
    preset = find_preset(settings.preset)
    patterns = list(preset.patterns)
    if Unstructured(settings.sparsity) not in patterns:
        patterns.append(Unstructured(settings.sparsity))
    shares = parse_shares(settings.calibration)
    wanted = [("dense", Unstructured(0.0)), *((method, pattern) for pattern in patterns for method in METHODS)]
    return [
        RunConfig(
            model=settings.model,
            method=method,
            pattern=pattern,
            calibration=() if method in (*DATA_FREE, "dense") else shares,
            n_windows=preset.n_windows,
            window=preset.window,
            seed=settings.seed,
            texts=preset.texts,
            eval_windows=preset.eval_windows,
            eval_window=preset.eval_window,
            tasks=preset.tasks,
            task_items=preset.task_items,
            device=device,
            dtype=dtype,
        )
        for method, pattern in wanted
    ]


def run_study(settings: Settings) -> StoredRuns:
    """Make the chapter's missing runs, or with `compute = "never"` only look the stored ones up, without torch."""
    folder = results_dir(settings.preset)
    if settings.compute == "never":
        return StoredRuns(folder, find_stored(chapter_configs(settings), folder))
    from crosscal.models.loading import resolve_device, resolve_dtype

    device = resolve_device(settings.device)
    dtype = str(resolve_dtype("auto", device)).removeprefix("torch.")
    configs = chapter_configs(settings, device.type, dtype)
    return StoredRuns(folder, run_missing(configs, folder, settings.preset, accept_terms=settings.accept_terms))
