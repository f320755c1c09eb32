"""Run configurations that share a model, a preset's sizes, a device and a seed."""

from dataclasses import dataclass, replace
from typing import TypeVar

from crosscal.plan.parameters import Settings
from crosscal.plan.presets import TASK_PROMPTS, Preset, find_preset
from crosscal.types import RunConfig, Target, Unstructured

T = TypeVar("T")
Shares = tuple[tuple[str, float], ...]

DATA_FREE = ("dense", "float32", "magnitude", "rtn", "svd", "joint_rank")


@dataclass(frozen=True)
class Maker:
    """Makes run configurations that share a model, a preset's sizes, a device and a seed."""

    settings: Settings
    device: str = "auto"
    dtype: str = "auto"

    @property
    def preset(self) -> Preset:
        """The preset of the settings."""
        return find_preset(self.settings.preset)

    def by_size(self, smoke: T, quick: T, full: T) -> T:
        """The entry for this preset."""
        return {"smoke": smoke, "quick": quick, "full": full}[self.preset.name]

    def __call__(self, method: str, target: Target | None = None, shares: Shares = (), **changes) -> RunConfig:
        """One run; methods that need no text get none, whatever `shares` says.

        A run that is asked other tasks than the preset's reads no task prompts: they are made of the tasks asked, so
        they would be another text than that of the other runs.
        """
        preset = self.preset
        if changes.get("tasks", preset.tasks) != preset.tasks:
            changes = {"texts": tuple(text for text in preset.texts if text != TASK_PROMPTS), **changes}
        config = RunConfig(
            model=self.settings.model,
            method=method,
            target=target or Unstructured(0.0),
            calibration=() if method in DATA_FREE else shares,
            n_windows=preset.n_windows,
            window=preset.window,
            seed=self.settings.seed,
            texts=preset.texts,
            eval_windows=preset.eval_windows,
            eval_window=preset.eval_window,
            tasks=preset.tasks,
            task_items=preset.task_items,
            device=self.device,
            dtype="float32" if method == "float32" else self.dtype,
        )
        return replace(config, **changes)

    def dense(self, **changes) -> RunConfig:
        """The model as it is."""
        return self("dense", **changes)


def only(source: str) -> Shares:
    """All weight on one source."""
    return ((source, 1.0),)


def mixed(general: str, domain: str, weight: float) -> Shares:
    """Cross-calibration with `weight` on the domain; at 0 and 1 one source alone.

    >>> mixed("c4", "pubmed", 0.5), mixed("c4", "pubmed", 1.0)
    ((('c4', 0.5), ('pubmed', 0.5)), (('pubmed', 1.0),))
    """
    if weight in (0.0, 1.0):
        return only(domain if weight else general)
    return ((general, 1.0 - weight), (domain, weight))
