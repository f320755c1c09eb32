"""Answers that a model writes to instructions, and their scores against references.

Source: the measurement of Khanal & Capone 2024 (arXiv 2409.11233), who compare a compressed model's answers with
references on instructions of the set it was calibrated on and of one it was not.
"""

import re
import string
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from crosscal.engine.driver import Residence
from crosscal.errors import InputError, whole_number
from crosscal.metrics.instructions import _Instruction, _instructions_version, _load_instructions
from crosscal.metrics.text_scores import _check_finite
from crosscal.models import LoadedModel
from crosscal.text.windows import _start_tokens, _token_ids
from crosscal.text.written import _without_own_settings

_BATCH = {"cuda": 64, "cpu": 16}
_HEADING = "\n###"  # the frame's; the next one ends an answer
_LAST_TOKENS = 8  # a heading is noticed with its last token, so it lies within the last few
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class GenerationResult:
    """Hold the scores of a model's answers to one instruction set.

    `values` are means over the items by score ("exact_match", "f1", "rouge1", each from 0 to 1). `items` holds equally
    long lists: "id" and each score, rounded to 4 digits. `version` changes when the items do.
    """

    name: str
    n: int
    values: dict[str, float]
    items: dict[str, list]
    version: str


def score_answers(
    loaded: LoadedModel | Residence,
    name: str,
    n_items: int = 100,
    *,
    max_new_tokens: int = 80,
    batch_size: int | None = None,
    progress: bool = True,
) -> GenerationResult:
    """Let a model answer at most `n_items` items of an instruction set and score each answer.

    No embedded calibration text holds an item. "alpaca" and "dialogues" are the held-out part of the text source of
    that name: an instruction with its input, or a user's only turn; the reference is its output, or the chosen answer.
    "squad" is a passage of Wikipedia, a question and a request for a few words of the text; the references are what
    several people marked. Source: SQuAD 1.1, a sample of its development part (Rajpurkar et al. 2016, arXiv
    1606.05250; CC BY-SA 4.0). Each score is the best over an item's references, as in its section 6.1.

    Raises `InputError` for an unknown set, a model without tokenizer, sizes that make no sense, an instruction that
    does not fit into the model together with its answer, and outputs that are not finite.
    """
    asked = _load_instructions(name, n_items)
    answers = _write_answers(loaded, asked, max_new_tokens, batch_size, progress)
    pairs = [(answer, item.references) for answer, item in zip(answers, asked, strict=True)]
    scores = {
        metric: [round(max(score(answer, wanted) for wanted in references), 4) for answer, references in pairs]
        for metric, score in _SCORES.items()
    }
    values = {metric: sum(of_items) / len(of_items) for metric, of_items in scores.items()}
    items = {"id": [item.id for item in asked], **scores}
    return GenerationResult(name, len(asked), values, items, _instructions_version(name))


def _write_answers(
    loaded: LoadedModel | Residence,
    instructions: Sequence[_Instruction],
    max_new_tokens: int = 80,
    batch_size: int | None = None,
    progress: bool = True,
) -> list[str]:
    """The model's greedy answer to each instruction, in their order.

    A prompt is the instruction in the tokenizer's chat template, or under a heading where it has none. An answer ends
    at an end-of-text token, at what ends a turn of the chat, at a further heading, or after `max_new_tokens` tokens;
    settings that came with the model, such as a repetition penalty, do not apply. `batch_size` prompts of similar
    length (64 on CUDA devices, else 16) are read together; it changes an answer by rounding alone.
    """
    if isinstance(loaded, Residence):
        raise InputError(
            "written answers need the whole model in memory, and this one is read block by block; leave them out"
        )
    model, tokenizer = loaded
    if tokenizer is None:
        raise InputError("the model has no tokenizer, which prompts need; load it from a folder with its tokenizer")
    n_new = whole_number("max_new_tokens", max_new_tokens, least=1)
    default = _BATCH.get(loaded.device.type, _BATCH["cpu"])
    size = default if batch_size is None else whole_number("batch_size", batch_size, least=1)
    prompts = [_prompt_ids(tokenizer, item.instruction) for item in instructions]
    _check_room(model, instructions, prompts, n_new)
    stops = _stop_tokens(model, tokenizer)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))  # longest first: too large a batch fails early
    answers: dict[int, str] = {}
    with tqdm(total=len(order), desc="write answers", unit=" items", disable=not progress, leave=False, delay=1) as bar:
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            width = max(len(prompts[i]) for i in batch)
            heading = _StopAtText(tokenizer, width, [_HEADING], _LAST_TOKENS, before="\n")
            criteria = [heading] if _has_headings(tokenizer) else []
            written = _continue_greedily(model, [prompts[i] for i in batch], n_new, stops, criteria)
            answers.update((i, _answer_text(tokenizer, row, stops)) for i, row in zip(batch, written, strict=True))
            bar.update(len(batch))
    return [answers[i] for i in range(len(prompts))]


def _check_room(model, instructions: Sequence[_Instruction], prompts: list[list[int]], n_new: int) -> None:
    """Raise `InputError` for a prompt that is too long: cut off, it would no longer ask the same."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for item, prompt in zip(instructions, prompts, strict=True):
        if most is not None and len(prompt) + n_new > most:
            raise InputError(
                f"instruction {item.id} has {len(prompt)} tokens and its answer up to {n_new}, but the model was made "
                f"for {most} in all; give a smaller max_new_tokens or leave it out"
            )


def _has_headings(tokenizer) -> bool:
    """Whether prompts are framed by headings: a tokenizer with a chat template brings a frame of its own."""
    return not tokenizer.chat_template


def _prompt_ids(tokenizer, instruction: str) -> list[int]:
    """The tokens a model is given: one user turn of a chat, or an instruction under its heading."""
    if not _has_headings(tokenizer):
        turns = [{"role": "user", "content": instruction}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    text = f"Write an answer that does what the instruction asks.\n{_HEADING} Instruction:\n{instruction}\n"
    return _start_tokens(tokenizer) + _token_ids([f"{text}{_HEADING} Response:\n"], tokenizer)[0].tolist()


def _stop_tokens(model, tokenizer) -> list[int]:
    """Every token that ends an answer: the tokenizer's and the model's, and what ends a turn of the chat template."""
    stops = [tokenizer.eos_token_id, tokenizer.get_vocab().get("<|endoftext|>"), _turn_end(tokenizer)]
    for config in (model.generation_config, model.config.get_text_config()):
        ids = getattr(config, "eos_token_id", None)
        stops += ids if isinstance(ids, list) else [ids]
    return list(dict.fromkeys(token for token in stops if token is not None))


def _turn_end(tokenizer) -> int | None:
    """The special token right after an assistant's turn in the chat template, if one stands there."""
    if _has_headings(tokenizer):
        return None
    turns = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": "some answer"}]
    _, _, rest = tokenizer.apply_chat_template(turns, tokenize=False).partition("some answer")
    after = tokenizer(rest.lstrip(), add_special_tokens=False)["input_ids"][:1]
    return after[0] if after and after[0] in tokenizer.added_tokens_decoder else None


def _answer_text(tokenizer, tokens: list[int], stops: Iterable[int]) -> str:
    """The answer in written tokens: what stands before the first stop and, in the frame, before a further heading."""
    text = tokenizer.decode(_until_stop(tokens, stops), skip_special_tokens=True)
    return (_cut_at_stop(f"\n{text}", [_HEADING]) if _has_headings(tokenizer) else text).strip()


def _until_stop(tokens: list[int], stops: Iterable[int]) -> list[int]:
    """The tokens before the first stop."""
    ends = [tokens.index(stop) for stop in stops if stop in tokens]
    return tokens[: min(ends)] if ends else tokens


def _cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """The text before the earliest stop sequence."""
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


@torch.no_grad()
def _continue_greedily(
    model, prompts: list[list[int]], n_new: int, stops: list[int], criteria: Sequence[StoppingCriteria] = ()
) -> list[list[int]]:
    """The likeliest next token after each prompt, again and again: the new tokens of each.

    Prompts are left-padded, so that all end, and go on, at the same place; positions follow from the mask.
    """
    device = model.get_input_embeddings().weight.device
    pad, width = stops[0] if stops else 0, max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
    config = GenerationConfig(
        do_sample=False, max_new_tokens=n_new, eos_token_id=stops or None, pad_token_id=pad, use_cache=True
    )
    with _without_own_settings(model):
        written = model.generate(
            ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=LogitsProcessorList([_Finite()]),
            stopping_criteria=StoppingCriteriaList(criteria),
        )
    return written[:, width:].tolist()


class _StopAtText(StoppingCriteria):
    """Which texts hold a stop sequence, looked for in their last `most` tokens; `before` stands in front of a text."""

    def __init__(self, tokenizer, start: int, stops: Sequence[str], most: int = sys.maxsize, before: str = ""):
        self.tokenizer, self.start, self.stops, self.most, self.before = tokenizer, start, stops, most, before

    def __call__(self, input_ids: Tensor, scores, **kwargs) -> Tensor:
        first = max(self.start, input_ids.shape[1] - self.most)
        before = self.before if first == self.start else ""
        texts = self.tokenizer.batch_decode(input_ids[:, first:])
        done = [any(stop in before + text for stop in self.stops) for text in texts]
        return torch.tensor(done, device=input_ids.device)


class _Finite(LogitsProcessor):
    """Raises `InputError` for outputs of which no largest can be told."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        _check_finite(scores.amax(dim=-1))
        return scores


def _normalize(text: str) -> list[str]:
    """The words of a text in lower case, without ASCII punctuation and English articles.

    Source: the evaluation of SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1).
    """
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _exact_match(answer: str, reference: str) -> float:
    """1 where both have the same normalized words in the same order, else 0."""
    return float(_normalize(answer) == _normalize(reference))


def _token_f1(answer: str, reference: str) -> float:
    """The harmonic mean of precision and recall of normalized words, each counted as often as both texts have it.

    Where a text has no words left, 1 if neither has any and else 0. Source: Rajpurkar et al. 2016 (arXiv 1606.05250,
    section 6.1).
    """
    given, wanted = _normalize(answer), _normalize(reference)
    if not given or not wanted:
        return float(given == wanted)
    shared = (Counter(given) & Counter(wanted)).total()
    return 2 * shared / (len(given) + len(wanted))


def _rouge1(answer: str, reference: str) -> float:
    """ROUGE-1 as F-measure: words (a-z, 0-9) shared by both texts, articles included, without stemming.

    Source: Lin 2004 (ROUGE: a package for automatic evaluation of summaries, section 2), precision and recall alike.
    """
    return float(_rouge().score(reference, answer)["rouge1"].fmeasure)


@lru_cache(maxsize=1)
def _rouge():
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise InputError(f"ROUGE needs the package '{error.name}'; run pip install 'crosscal[study]'") from error
    return RougeScorer(["rouge1"], use_stemmer=False)


_SCORES = {"exact_match": _exact_match, "f1": _token_f1, "rouge1": _rouge1}
"""Every score of an answer against a reference, by the name it has in results."""
