"""The embedded tasks; what is known of each stands in catalogue.toml. Standard library only, so that pages read it."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Task:
    """Describe one task that needs no connection once its archive is in the cache.

    `metric` is "accuracy" (the option with the greatest log-probability is right), "accuracy_per_char" (greatest
    log-probability per character) or "auc" (area under the ROC curve of log p(yes) - log p(no)); `chance` is what
    guessing scores. `form` says what the harness does: score `options` after one context, one text after several
    `contexts`, or a `cloze`, right when greedy decoding gives the word. `overlaps` names text sources whose
    calibration part shares text with the task. `digest` begins the SHA-256 of the task's file; a change of its items
    raises `version`.

    `skill` is what the task asks of a model: "knowledge" that the text before the options does not hold, "reading" of
    that text, "language" (grammar and word order), or "" where it is a mixture. `variant_of` names the task whose items
    this one perturbs, `paired_with` one that asks the same questions for another skill: in both cases equal item ids
    mean the same question with the same options, and items stand in the other task's order, so that the first k of
    both can be paired by id.
    """

    name: str
    title: str
    domain: Literal["general", "biomedical", "legal"]
    metric: Literal["accuracy", "accuracy_per_char", "auc"]
    chance: float
    n_items: int
    built: str
    source: str
    archive: str
    licence: str
    digest: str
    version: int = 1
    form: Literal["options", "contexts", "cloze"] = "options"
    overlaps: tuple[str, ...] = ()
    skill: Literal["", "knowledge", "reading", "language"] = ""
    variant_of: str = ""
    paired_with: str = ""


_ENTRIES = tomllib.loads(Path(__file__).with_name("catalogue.toml").read_text(encoding="utf-8"))

TASKS: dict[str, Task] = {
    name: Task(name=name, overlaps=tuple(entry.pop("overlaps", ())), **entry) for name, entry in _ENTRIES.items()
}
"""Every embedded task by name, general ones first."""


SCORING_VERSION = 2
"""Raised when the same log-probabilities give other outcomes; runs stored without one are of version 1.

Version 1 counted an item as right where other options, or other tokens of a cloze, were exactly as likely as the right
one and came after it. In 2 a tie is no hit.
"""


def describe() -> list[dict[str, str]]:
    """Return one row per task for tables: name, title, domain, skill, metric, chance, items, how built, and so on."""
    same = ("name", "title", "domain", "skill", "variant_of", "metric", "built", "source", "licence")
    return [
        {name: getattr(task, name) for name in same}
        | {"chance": f"{task.chance:.2f}", "items": f"{task.n_items:,}", "overlaps": ", ".join(task.overlaps)}
        for task in TASKS.values()
    ]
