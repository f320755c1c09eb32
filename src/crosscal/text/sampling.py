"""Sampling token windows from a model and scoring them by it, apart from where prefixes come from and results go."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from crosscal.errors import InputError

_POSITIONS = 256  # positions whose logits exist at one time: 50 MB of float32 for a vocabulary of 49,152


@dataclass(frozen=True)
class _Sampling:
    """How windows are drawn: their `length` in tokens, and the tokens among which the next one is drawn.

    Raises `InputError` unless 0 < top_p <= 1, top_k >= 0 (0: no limit) and temperature > 0.

    >>> _Sampling(1024, top_p=0.0)
    Traceback (most recent call last):
    crosscal.errors.InputError: top_p is 0.0; give a number above 0 and at most 1
    """

    length: int
    top_p: float = 0.95
    top_k: int = 50
    temperature: float = 1.0

    def __post_init__(self):
        if not isinstance(self.top_p, (int, float)) or not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p!r}; give a number above 0 and at most 1")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise InputError(f"top_k is {self.top_k!r}; give a whole number of tokens, 0 for no limit")
        if not isinstance(self.temperature, (int, float)) or not 0 < self.temperature < float("inf"):
            raise InputError(f"temperature is {self.temperature!r}; give a number above 0")


def _sample(
    model,
    prompt: Int[Tensor, "batch prompt"],
    sampling: _Sampling,
    seed: int,
    forbidden: list[int],
    progress: Callable[[int], object] = lambda tokens: None,
) -> Int[Tensor, "batch length"]:
    """Continue each prompt to `sampling.length` tokens, none of them `forbidden`.

    Settings that came with the model, such as a repetition penalty, do not apply: text is drawn from the model's own
    distribution. `progress` is called with the number of tokens added. The random state is left as it was.
    """
    config = GenerationConfig(
        do_sample=True,
        top_p=float(sampling.top_p),
        top_k=sampling.top_k,
        temperature=float(sampling.temperature),
        max_new_tokens=sampling.length - prompt.shape[1],
        suppress_tokens=forbidden or None,
        use_cache=True,
    )
    with _seeded(seed, prompt.device), _without_own_settings(model):
        return model.generate(
            prompt, attention_mask=torch.ones_like(prompt), generation_config=config, streamer=_Counter(progress)
        )


@torch.inference_mode()
def _own_nll(model, tokens: Int[Tensor, "batch length"], n_given: int) -> Float[Tensor, " batch"]:
    """Mean negative log-likelihood, in nats, of each window's tokens after the first `n_given`, given all before them.

    Windows are read one by one and in pieces, so that few logits exist at a time. Raises `InputError` for non-finite
    results.
    """
    means = []
    for window in tokens:
        cache, losses = None, []
        for inputs, targets in zip(window[:-1].split(_POSITIONS), window[1:].split(_POSITIONS), strict=True):
            out = model(input_ids=inputs[None], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            losses.append(torch.nn.functional.cross_entropy(out.logits[0].float(), targets, reduction="none"))
        means.append(torch.cat(losses)[n_given - 1 :].mean())
    nll = torch.stack(means)
    if not nll.isfinite().all():
        raise InputError("the model's outputs are NaN or infinite on its own text; load it in float32")
    return nll


class _Counter(BaseStreamer):
    """Tells how many tokens `generate` has added."""

    def __init__(self, progress: Callable[[int], object]):
        self.progress = progress

    def put(self, value: Tensor) -> None:
        self.progress(value.numel())

    def end(self) -> None:
        pass


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers on the CPU and `device` start from `seed`, and go on afterwards as if nothing had been drawn.

    `torch.manual_seed` would reach every device there is, those that are not saved here too.
    """
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        elif device.type != "cpu":
            torch.manual_seed(seed)  # the one way to reach any other kind of device, whose state is then not restored
        yield


@contextmanager
def _without_own_settings(model) -> Iterator[None]:
    """`generate` fills in whatever it is not told from the settings that came with the model; here from none."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
