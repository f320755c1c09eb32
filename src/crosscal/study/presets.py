"""How big a study is. `quick` answers in minutes on two cores; `full` is what the committed book shows."""

from dataclasses import dataclass

from crosscal.errors import InputError, suggest
from crosscal.types import NofM, Pattern, Unstructured

TEXTS = ("pubmed", "legal", "wikipedia", "news")
TASKS = (
    "common_knowledge",
    "sciq",
    "arc_easy",
    "piqa",
    "bioasq",
    "pubmed_next_section",
    "case_summary",
    "contract_clause",
)


@dataclass(frozen=True)
class Preset:
    """The sizes of a study: calibration windows, held-out windows, task items, and the patterns to try."""

    name: str
    n_windows: int
    window: int
    eval_windows: int
    eval_window: int
    task_items: int
    patterns: tuple[Pattern, ...]
    texts: tuple[str, ...] = TEXTS
    tasks: tuple[str, ...] = TASKS


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("smoke", 2, 64, 2, 64, 4, (Unstructured(0.5),), ("pubmed", "news"), ("sciq", "contract_clause")),
        Preset("quick", 16, 512, 4, 512, 40, (Unstructured(0.5), Unstructured(0.7), NofM(2, 4))),
        Preset(
            "full",
            32,
            1024,
            6,
            1024,
            120,
            # The order is the order of running: what matters most comes first.
            (
                *(Unstructured(0.5), NofM(2, 4), Unstructured(0.6), Unstructured(0.3), Unstructured(0.7)),
                *(NofM(4, 8), Unstructured(0.2)),
            ),
        ),
    )
}


def find_preset(name: str) -> Preset:
    """The preset of this name; raises `InputError` that lists the names otherwise."""
    if name not in PRESETS:
        raise InputError(f"unknown preset '{name}'{suggest(name, list(PRESETS))}; give one of {', '.join(PRESETS)}")
    return PRESETS[name]
