"""How big a study is. `quick` answers in minutes on two cores; `full` is what the committed book shows."""

from dataclasses import dataclass, replace

from crosscal.errors import InputError, suggest

TASK_PROMPTS = "task_prompts"
TEXTS = ("pubmed", "legal", "wikipedia", "news", TASK_PROMPTS)
SHORT_TASKS = ("common_knowledge", "sciq", "arc_easy", "piqa")
TASKS = (
    *SHORT_TASKS,
    "pubmed_next_section",
    "pubmed_question",
    "case_summary",
    "contract_clause",
)


@dataclass(frozen=True)
class Preset:
    """The sizes of a study: calibration windows, held-out windows, task items, and answers to instructions.

    `short_tasks` cost a third of all tasks' time: grids with many runs ask only these.
    """

    name: str
    n_windows: int
    window: int
    eval_windows: int
    eval_window: int
    task_items: int
    answer_items: int
    texts: tuple[str, ...] = TEXTS
    tasks: tuple[str, ...] = TASKS
    short_tasks: tuple[str, ...] = SHORT_TASKS

    def at_most(self, size: str) -> bool:
        """Whether this preset is `size` or smaller."""
        return list(PRESETS).index(self.name) <= list(PRESETS).index(size)


_FULL = Preset("full", 16, 1024, 8, 512, 100, 60)
PRESETS = {
    preset.name: preset
    for preset in (
        Preset("smoke", 2, 64, 2, 64, 4, 2, ("pubmed", "news", TASK_PROMPTS), ("sciq", "contract_clause"), ("sciq",)),
        replace(_FULL, name="quick", window=512, eval_windows=4, task_items=40, answer_items=16),
        _FULL,
    )
}


def find_preset(name: str) -> Preset:
    """The preset of this name; raises `InputError` that lists the names otherwise."""
    if name not in PRESETS:
        raise InputError(f"unknown preset '{name}'{suggest(name, list(PRESETS))}; give one of {', '.join(PRESETS)}")
    return PRESETS[name]
