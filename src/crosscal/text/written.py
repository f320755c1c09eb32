"""Calibration text that the model writes itself: for models whose training text nobody has.

Text like the training text calibrates best, and what a model writes resembles it. So the model continues short
prefixes, and the windows it finds least likely itself are dropped (Ji et al. 2024, arXiv 2410.17711).
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from crosscal.errors import InputError, whole_number
from crosscal.files import write_atomically
from crosscal.paths import cache_dir
from crosscal.text.documents import SELF
from crosscal.text.windows import TextWindows, _check_request, _start_tokens, _token_ids, _tokenized

_VERSION = 1  # raise when the same settings would give other windows
_POSITIONS = 256  # positions whose logits exist at one time: 50 MB of float32 for a vocabulary of 49,152
_BATCH = 16  # part of what decides a draw, so no parameter


@dataclass(frozen=True)
class _Sampling:
    """How windows are drawn: their `length` in tokens, and the tokens among which the next one is drawn."""

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


def write_text(
    loaded,
    *,
    n_windows: int = 128,
    length: int = 1024,
    seed: int = 0,
    top_p: float = 0.95,
    top_k: int = 50,
    temperature: float = 1.0,
    drop: float = 0.2,
    prefixes: str | Sequence[str] = "c4",
    prefix_tokens: int = 4,
    progress: bool = True,
) -> TextWindows:
    """Let a model write `n_windows` windows of `length` tokens; `loaded` is what `load_model` returns.

    A window is the tokenizer's start token (if it puts one before every text), the first `prefix_tokens` tokens of a
    document, and what the model samples after them, from the `top_k` likeliest tokens (0: all) and of these from the
    smallest set with probability `top_p`. The documents are the calibration part of the source `prefixes`, or the
    texts given there, in an order drawn from `seed`, and again from the first one when there are more windows than
    documents; shorter ones are left out. Special tokens, the end token among them, are never sampled: each window is
    one text of full length.

    ceil(n_windows / (1 - drop)) windows are drawn, whole batches of 16 at a time. Those with the lowest perplexity
    under the same model, prefix excluded and nothing cut off, are returned in the order drawn. The windows drawn for
    a smaller request come first in those for a larger one. They depend on the weights, the tokenizer, the kind of
    device, the settings and `seed`; the caller's random state neither matters nor changes.

    Each finished batch is kept in the cache folder, so an interrupted call continues and a repeated one is instant.
    The result has source "self" and split "calibration". Equation eq-written of the book.
    Source: Ji et al. 2024 (arXiv 2410.17711).

    Raises `InputError` for settings that make no sense, a length beyond what the model was made for, prefixes that
    are all too short, a model without tokenizer, and a cache folder that cannot be written.
    """
    sampling = _Sampling(length, top_p, top_k, temperature)
    _check(loaded, n_windows, length, seed, drop, prefix_tokens)
    drawn = math.ceil(n_windows / (1 - drop) - 1e-9)  # 10 / (1 - 0.9) is a little more than 100
    batches = math.ceil(drawn / _BATCH)
    prompts = _prompts(prefixes, loaded.tokenizer, batches * _BATCH, prefix_tokens, seed)
    if prompts.shape[1] >= length:
        raise InputError(f"length is {length} and the prefix takes {prompts.shape[1]} tokens of it; give a greater one")
    parts = []
    shown = {"unit": " tokens", "unit_scale": True, "leave": False, "delay": 1, "disable": not progress}
    with tqdm(total=batches * _BATCH * length, **shown) as bar:
        for index, prompt in enumerate(prompts.split(_BATCH)):
            bar.set_description(f"write text, batch {index + 1} of {batches}")
            parts.append(_written_batch(loaded, prompt, sampling, seed, index, bar))
    tokens, nll = (torch.cat(part)[:drawn] for part in zip(*parts, strict=True))
    kept = nll.argsort(stable=True)[:n_windows].sort().values
    settings = json.dumps({"model": loaded.fingerprint, "drop": drop, "prefix": prompts.shape[1], **asdict(sampling)})
    return TextWindows.of(SELF, "calibration", settings, seed, tokens[kept].long())


def _prompts(prefixes, tokenizer, n: int, length: int, seed: int) -> Int[Tensor, "n prompt"]:
    """What each window starts with: start token and the first tokens of a document."""
    if isinstance(prefixes, str):
        texts, _ = _tokenized(prefixes, "calibration", tokenizer)
    else:
        texts = _token_ids(list(prefixes), tokenizer) if len(prefixes) else []
    heads = [ids[:length] for ids in texts if len(ids) >= length]
    if not heads:
        raise InputError(f"no text of prefixes has {length} tokens; give longer texts or smaller prefix_tokens")
    order = torch.randperm(len(heads), generator=torch.Generator().manual_seed(seed)).tolist()
    body = torch.stack([heads[order[i % len(order)]] for i in range(n)]).long()
    return torch.cat([torch.tensor(_start_tokens(tokenizer), dtype=torch.int64).expand(n, -1), body], dim=1)


def _check(loaded, n_windows: int, length: int, seed: int, drop: float, prefix_tokens: int) -> None:
    """Raise `InputError` for a request that cannot be met."""
    _check_request(n_windows, length, seed, "packed")
    whole_number("prefix_tokens", prefix_tokens, 1)
    if not isinstance(drop, (int, float)) or not 0 <= drop < 1:
        raise InputError(f"drop is {drop!r}; give the fraction of windows to drop, from 0 to below 1")
    if loaded.tokenizer is None:
        raise InputError("the model has no tokenizer, which prefixes need; load it from a folder with its tokenizer")
    most = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and length > most:
        raise InputError(f"length is {length} and the model was made for at most {most} tokens; give a smaller length")


def _written_batch(
    loaded, prompt: Int[Tensor, "batch prompt"], sampling: _Sampling, seed: int, index: int, bar: tqdm
) -> tuple[Int[Tensor, "batch length"], Float[Tensor, " batch"]]:
    """Tokens (int32) and mean negative log-likelihoods of batch `index`, from the cache folder if they are there.

    `bar` advances by the batch's tokens, prompts included. A folder that cannot be written costs the copy alone.
    """
    forbidden = _special_tokens(loaded)
    path = cache_dir() / "written" / f"{_key(loaded, prompt, sampling, seed, index, forbidden)}.safetensors"
    before = bar.n
    try:
        kept = load_file(path)
    except (OSError, SafetensorError):  # none there, or damaged
        stream = int.from_bytes(hashlib.sha256(f"{seed} {index}".encode()).digest()[:8], "big") >> 1
        tokens = _sample(loaded.model, prompt.to(loaded.device), sampling, stream, forbidden, bar.update)
        nll = _own_nll(loaded.model, tokens, prompt.shape[1])
        kept = {"tokens": tokens.cpu().int(), "nll": nll.cpu()}
        write_atomically(path, save(kept), optional=True)
    bar.update(before + len(prompt) * sampling.length - bar.n)
    return kept["tokens"], kept["nll"]


def _special_tokens(loaded) -> list[int]:
    """The ids that are no text: the tokenizer's special tokens and whatever ends a text for this model."""
    ends = getattr(getattr(loaded.model, "generation_config", None), "eos_token_id", None)
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    return sorted({*loaded.tokenizer.all_special_ids, *ends})


def _key(loaded, prompt: Tensor, sampling: _Sampling, seed: int, index: int, forbidden: list[int]) -> str:
    """SHA-256 of everything that decides a batch."""
    decides = {"version": _VERSION, "model": loaded.fingerprint, "config": _deciding(loaded.model.config)}
    decides |= {"device": loaded.device.type, "seed": seed, "index": index, "prompt": prompt.tolist()}
    decides |= {"forbidden": forbidden, **asdict(sampling)}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:32]


def _deciding(config) -> dict:
    """What a config says but where it lies and who wrote it: it decides the text as the weights do."""
    told = json.loads(json.dumps(config.to_dict(), default=str))
    return {name: value for name, value in told.items() if name not in ("_name_or_path", "transformers_version")}


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
    mask = torch.ones_like(prompt)
    with _seeded(seed, prompt.device), _without_own_settings(model):
        return model.generate(prompt, attention_mask=mask, generation_config=config, streamer=_Counter(progress))


@torch.inference_mode()
def _own_nll(model, tokens: Int[Tensor, "batch length"], n_given: int) -> Float[Tensor, " batch"]:
    """Mean negative log-likelihood, in nats, of each window's tokens after the first `n_given`, given all before them.

    Windows are read one by one and in pieces, so that few logits exist at a time.
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
