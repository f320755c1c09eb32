"""The texts of a study: the sources of `crosscal.text`, and three that a study makes itself.

`self` is written by the dense model, `random` is tokens drawn evenly from the vocabulary, and `task_prompts` joins the
questions of the study's tasks with their right answers, so that divergence can be read where tasks are asked.
"""

import hashlib
import json
from collections.abc import Callable, Sequence

import torch

from crosscal.engine.driver import Residence
from crosscal.errors import InputError
from crosscal.models import LoadedModel
from crosscal.plan.parameters import TASK_PROMPTS
from crosscal.study.identity import RANDOM
from crosscal.text import SELF, SOURCES, TextWindows, load_text, write_text
from crosscal.text.windows import _draw_packed


class StudyTexts:
    """Draws each text once and keeps it for as long as the study runs."""

    def __init__(
        self,
        loaded: LoadedModel,
        tasks: Sequence[str] = (),
        task_items: int = 1,
        note: Callable[[str], None] = lambda _: None,
    ):
        self._loaded, self._tasks, self._items, self._note = loaded, tuple(tasks), task_items, note
        self._drawn: dict[tuple, TextWindows] = {}

    def draw(self, source: str, n_windows: int, length: int, seed: int, split: str) -> TextWindows:
        """Windows [n_windows, length] of one part of a source; see `load_text` for what raises."""
        key = (source, n_windows, length, seed, split)
        if key not in self._drawn:
            windows = self._drawn[key] = self._draw(*key)
            if windows.report is not None and source not in SOURCES:
                self._note(f"read {windows.report}")
        return self._drawn[key]

    def _draw(self, source: str, n_windows: int, length: int, seed: int, split: str) -> TextWindows:
        tokenizer = self._loaded.tokenizer
        if split == "calibration" and source == SELF:
            if isinstance(self._loaded, Residence):
                raise InputError("text that a model writes itself needs the model in memory; calibrate on other text")
            return write_text(self._loaded, n_windows=n_windows, length=length, seed=seed)
        if split == "calibration" and source == RANDOM:
            return random_tokens(tokenizer, n_windows, length, seed)
        if split == "held_out" and source == TASK_PROMPTS:
            return task_prompts(tokenizer, self._tasks, self._items, n_windows, length)
        return load_text(source, tokenizer, n_windows=n_windows, length=length, seed=seed, split=split)


def random_tokens(tokenizer, n_windows: int, length: int, seed: int) -> TextWindows:
    """Windows of tokens drawn evenly from the vocabulary, special tokens left out: the least that calibration can be.

    Raises `InputError` for a tokenizer without ordinary tokens.
    """
    special = set(tokenizer.all_special_ids)
    ordinary = torch.tensor([i for i in range(len(tokenizer)) if i not in special])
    if len(ordinary) == 0:
        raise InputError("the tokenizer has no ordinary tokens to draw from; choose another calibration text")
    picks = torch.randint(len(ordinary), (n_windows, length), generator=torch.Generator().manual_seed(seed))
    tokens = ordinary[picks]
    return TextWindows.of(RANDOM, "calibration", "drawn", seed, tokens)


def task_prompts(tokenizer, tasks: Sequence[str], n_items: int, n_windows: int, length: int) -> TextWindows:
    """Questions with their right answers, the items that are asked, an equal share of the windows from each task.

    Raises `InputError` for a study without embedded tasks, and when a task's items do not fill its windows.
    """
    texts = prompt_texts(tasks, n_items)
    if not texts:
        raise InputError("the text 'task_prompts' is made of embedded tasks, and the study asks none; leave it out")
    shares = [n_windows // len(texts) + (number < n_windows % len(texts)) for number in range(len(texts))]
    parts = [
        _draw_packed(f"{TASK_PROMPTS} {name}", texts[name], tokenizer, share, length, seed=0)
        for name, share in zip(texts, shares, strict=True)
        if share
    ]
    tokens = torch.cat(parts)
    digest = hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:8]
    return TextWindows.of(TASK_PROMPTS, "held_out", digest, 0, tokens)


def prompt_texts(tasks: Sequence[str], n_items: int) -> dict[str, list[str]]:
    """By embedded task, the first `n_items` questions, each followed by its right answer."""
    from crosscal.metrics.tasks import TASKS
    from crosscal.metrics.tasks.files import _build_items

    return {name: [_with_answer(item) for item in _build_items(name)[:n_items]] for name in tasks if name in TASKS}


def _with_answer(item: dict) -> str:
    """One item as text: the question and the right option, or for tasks of several contexts, context and target."""
    right = item["choices"][item["gold"]]
    return f"{item['query']} {right}" if "query" in item else f"{right} {item['target'].strip()}"
