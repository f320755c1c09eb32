"""Greedy text generation up to a stop sequence, for tasks that compare written answers."""

from collections.abc import Callable

import torch

from crosscal.errors import InputError

DEFAULT_NEW_TOKENS = 256


@torch.no_grad()
def generate_greedily(lm, context: str, options: dict) -> str:
    """The greedy continuation of `context`, without what follows the first stop sequence of `options["until"]`.

    At most `options["max_gen_toks"]` tokens (256 by default); a context too long for the model loses its first
    tokens. `lm` is an `InMemoryLM`. Raises `InputError` when the task asks for sampling.
    """
    if options.get("do_sample") and options.get("temperature", 1.0) > 0:
        raise InputError("this task asks for sampled answers, and only greedy ones are supported; choose another task")
    stops = _stops(options)
    n_new = int(options.get("max_gen_toks", options.get("max_new_tokens", DEFAULT_NEW_TOKENS)))
    room = lm.max_length - n_new
    if room < 1:
        raise InputError(f"the task writes up to {n_new} tokens but the model takes {lm.max_length}; use another model")
    ids = torch.tensor([lm.tok_encode(context)[-room:]], device=lm.device)
    written = lm.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=n_new,
        stopping_criteria=[_stop_at(lm.tokenizer, ids.shape[1], stops)],
        pad_token_id=lm.eot_token_id,
        eos_token_id=lm.eot_token_id,
        use_cache=True,
    )
    text = lm.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
    return cut_at_stop(text, stops)


def _stop_at(tokenizer, start: int, stops: list[str]) -> Callable:
    """Whether each written text holds a stop sequence, asked after every token."""

    def found(ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:
        texts = tokenizer.batch_decode(ids[:, start:], skip_special_tokens=True)
        return torch.tensor([any(stop in text for stop in stops) for text in texts], device=ids.device)

    return found


def _stops(options: dict) -> list[str]:
    until = options.get("until") or []
    return [stop for stop in ([until] if isinstance(until, str) else until) if stop]


def cut_at_stop(text: str, stops: list[str]) -> str:
    """The text before the earliest stop sequence.

    >>> cut_at_stop("4. Next question", ["Question", "."])
    '4'
    """
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text
