"""The texts of a study: the sources of `crosscal.text`, and three that a study makes itself.

`self` is written by the dense model, `random` is tokens drawn evenly from the vocabulary, and `task_prompts` joins the
questions of the study's tasks with their right answers, so that divergence can be read where tasks are asked.
"""

import hashlib
import json
from collections.abc import Sequence

import torch

from crosscal.disk import StreamedModel
from crosscal.errors import InputError
from crosscal.models import LoadedModel
from crosscal.plan.parameters import TASK_PROMPTS
from crosscal.study.identity import RANDOM
from crosscal.text import SELF, TextWindows, load_text, write_text
from crosscal.text.windows import _draw_packed


def draw_text(
    loaded: LoadedModel | StreamedModel,
    source: str,
    n_windows: int,
    length: int,
    seed: int,
    split: str,
    tasks: Sequence[str] = (),
    task_items: int = 1,
) -> TextWindows:
    """Return windows [n_windows, length] of one part of a source; see `load_text` for what raises.

    Task prompts are those of the first `task_items` items of each embedded one of `tasks`.
    """
    if split == "calibration" and source == SELF:
        if isinstance(loaded, StreamedModel):
            raise InputError("text that a model writes itself needs the model in memory; calibrate on other text")
        return write_text(loaded, n_windows=n_windows, length=length, seed=seed)
    if split == "calibration" and source == RANDOM:
        return _random_tokens(loaded.tokenizer, n_windows, length, seed)
    if split == "held_out" and source == TASK_PROMPTS:
        return _task_prompts(loaded.tokenizer, tasks, task_items, n_windows, length)
    return load_text(source, loaded.tokenizer, n_windows=n_windows, length=length, seed=seed, split=split)


def _random_tokens(tokenizer, n_windows: int, length: int, seed: int) -> TextWindows:
    """Tokens drawn evenly from the vocabulary, special tokens left out: the least that calibration can be."""
    special = set(tokenizer.all_special_ids)
    ordinary = torch.tensor([i for i in range(len(tokenizer)) if i not in special])
    if len(ordinary) == 0:
        raise InputError("the tokenizer has no ordinary tokens to draw from; choose another calibration text")
    picks = torch.randint(len(ordinary), (n_windows, length), generator=torch.Generator().manual_seed(seed))
    return TextWindows.of(RANDOM, "calibration", "drawn", seed, ordinary[picks])


def _task_prompts(tokenizer, tasks: Sequence[str], n_items: int, n_windows: int, length: int) -> TextWindows:
    """Questions with their right answers, the items that are asked, an equal share of the windows from each task."""
    from crosscal.metrics.tasks import TASKS
    from crosscal.metrics.tasks.files import _build_items

    texts = {name: [_with_answer(item) for item in _build_items(name)[:n_items]] for name in tasks if name in TASKS}
    if not texts:
        raise InputError("the text 'task_prompts' is made of embedded tasks, and the study asks none; leave it out")
    shares = [n_windows // len(texts) + (number < n_windows % len(texts)) for number in range(len(texts))]
    parts = [
        _draw_packed(f"{TASK_PROMPTS} {name}", texts[name], tokenizer, share, length, seed=0)
        for name, share in zip(texts, shares, strict=True)
        if share
    ]
    digest = hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:8]
    return TextWindows.of(TASK_PROMPTS, "held_out", digest, 0, torch.cat(parts))


def _with_answer(item: dict) -> str:
    """One item as text: the question and the right option, or for tasks of several contexts, context and target."""
    right = item["choices"][item["gold"]]
    return f"{item['query']} {right}" if "query" in item else f"{right} {item['target'].strip()}"
