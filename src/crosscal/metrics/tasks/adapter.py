"""lm-evaluation-harness on a model that is already in memory, compressed or not.

Log-probabilities are in nats, in float32, from the model's own logits; contexts too long for the model lose
their first tokens, as in the harness's own adapter (Gao et al., lm-evaluation-harness, Zenodo 10256836).
"""

import copy
from collections.abc import Iterator, Sequence

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from tqdm import tqdm

from crosscal.engine.driver import final_states
from crosscal.engine.ranks import ranks
from crosscal.errors import InputError, whole_number
from crosscal.metrics.tasks.batching import _Batch, _fit, _group_rows, _plan, _Row
from crosscal.metrics.text_scores import _check_finite
from crosscal.metrics.writing import _continue_greedily, _cut_at_stop, _stop_tokens, _StopAtText
from crosscal.models import final_hidden, head_logits

_LOGITS_AT_ONCE = 2**25  # made by one product with the head: 64 MB in bfloat16, whatever the vocabulary
# Tokens per forward pass: enough to be fast, few enough for activations and key-value cache to fit.
_TOKEN_BUDGET = {"cpu": 2048, "cuda": 16384}
_DEFAULT_MAX_LENGTH = 2048
_DEFAULT_NEW_TOKENS = 256


class _InMemoryLM(TemplateLM):
    """Serve the harness's model interface over `(model, tokenizer)`.

    `token_budget` bounds the tokens of one forward pass and changes results by rounding only; `share` runs the
    context of an item once for all its options (tried out when None: it needs a key-value cache). Every score raises
    `InputError` where the model's outputs are not finite.
    """

    def __init__(
        self, model, tokenizer, *, token_budget: int | None = None, progress: bool = True, share=None, device=None
    ):
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self._device = model.get_input_embeddings().weight.device if device is None else device
        default = _TOKEN_BUDGET.get(self._device.type, _TOKEN_BUDGET["cpu"])
        self.token_budget = default if token_budget is None else whole_number("token_budget", token_budget, least=1)
        self.progress = progress
        self.share = _can_share(model) if share is None else share
        self._n_appended = _n_appended(tokenizer)

    @property
    def eot_token_id(self) -> int | None:
        """The token that ends a text, if there is one."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token an empty context is replaced by: beginning of sequence, else end of text, else `InputError`."""
        if (prefix := self._prefix()) is None:
            raise InputError(
                "this task scores text without a context, for which the tokenizer has no beginning-of-sequence and no "
                "end-of-text token to put in its place; set one of them in tokenizer_config.json"
            )
        return prefix

    def _prefix(self) -> int | None:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def max_length(self) -> int:
        """The longest input in tokens, from the model's configuration, else its tokenizer, else 2,048."""
        config = self.model.config.get_text_config()
        for name in ("n_positions", "max_position_embeddings", "n_ctx"):
            if (value := getattr(config, name, None)) is not None:
                return int(value)
        limit = getattr(self.tokenizer, "model_max_length", None)
        return int(limit) if limit is not None and limit < 10**9 else _DEFAULT_MAX_LENGTH

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        """Return token ids, by default after the tokenizer's own start tokens; never a second beginning-of-sequence.

        An end token that the tokenizer puts after every text is left out: what follows a context continues it.
        """
        if add_special_tokens is None:
            prefix = self._prefix()
            start = "" if prefix is None else self.tokenizer.decode(prefix)
            add_special_tokens = not (start and string.startswith(start))
        ids = self.tokenizer.encode(string, add_special_tokens=add_special_tokens)
        return ids[: len(ids) - self._n_appended] if add_special_tokens else ids

    def loglikelihood(self, requests, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return `(log-probability, is it the greedy continuation)` per request; the harness's bar is off."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs) -> list[tuple[float, bool]]:
        """Score `(strings, context ids, target ids)` triples, in any order, and answer in theirs.

        A target longer than the model is scored in pieces, each after as much of what precedes it as fits.
        """
        pieces, owners = [], []
        for owner, (strings, context, target) in enumerate(requests):
            if not target:
                raise InputError(
                    f"an option of a task has no token of its own after its context: {strings!r:.160}; give it text, "
                    "or put a space between them (target_delimiter)"
                )
            for piece in _fit(context, target, self.max_length):
                pieces.append(piece)
                owners.append(owner)
        logprobs, greedy = [0.0] * len(requests), [True] * len(requests)
        with tqdm(total=len(pieces), desc="task options", unit="option", disable=not self.progress) as bar:
            own: dict[int, dict[int, tuple[float, bool]]] = {}
            for number, scored in self._scored(pieces):
                own[number] = scored
                bar.update(len(scored))
            for _, scored in sorted(pair for part in ranks().all(own) for pair in part.items()):
                for index, (logprob, is_greedy) in scored.items():
                    logprobs[owners[index]] += logprob
                    greedy[owners[index]] &= is_greedy
        return list(zip(logprobs, greedy, strict=True))

    def _scored(self, pieces) -> Iterator[tuple[int, dict[int, tuple[float, bool]]]]:
        """The number of each batch of this rank, and the answers to its pieces by index."""
        for number, batch in ranks().turns(_plan(_group_rows(pieces), self.token_budget, self.share)):
            yield number, _score_batch(self.model, batch)

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of whole texts, each token predicted once, in windows of `max_length`."""
        windows, owners = [], []
        for owner, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for pair in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1):
                windows.append(((None, None), *make_disjoint_window(pair)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += logprob
        return totals

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Return greedy continuations, each cut at its first stop sequence."""
        jobs = tqdm(requests, desc="generations", unit="text", disable=not self.progress)
        return [self._generate(*request.args) for request in jobs]

    def _generate(self, context: str, options: dict) -> str:
        """The greedy continuation of `context`, without what follows the first stop sequence of `options["until"]`.

        At most `options["max_gen_toks"]` tokens (256 by default); a context too long for the model loses its first
        tokens.
        """
        if options.get("do_sample") and options.get("temperature", 1.0) > 0:
            raise InputError("this task asks for sampled answers, and only greedy ones are supported; choose another")
        n_new = int(options.get("max_gen_toks", options.get("max_new_tokens", _DEFAULT_NEW_TOKENS)))
        if (room := self.max_length - n_new) < 1:
            most = self.max_length
            raise InputError(f"the task writes up to {n_new} tokens but the model takes {most}; use another model")
        until = options.get("until") or []
        stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
        prompt = self.tok_encode(context)[-room:]
        ends = _stop_tokens(self.model, self.tokenizer)
        criteria = [_StopAtText(self.tokenizer, len(prompt), stops)]
        (written,) = _continue_greedily(self.model, [prompt], n_new, ends, criteria)
        return _cut_at_stop(self.tokenizer.decode(written, skip_special_tokens=True), stops)


class _StreamedLM(_InMemoryLM):
    """Serve the same interface over a model that is read from disk block by block, `crosscal.disk.StreamedModel`.

    All requests of one kind pass through a block before the next one is read. Text cannot be written this way.
    """

    def __init__(self, residence, *, token_budget: int | None = None, progress: bool = True):
        self._residence = residence
        options = {"token_budget": token_budget, "progress": progress, "share": False, "device": residence.device}
        super().__init__(residence.model, residence.tokenizer, **options)

    def _scored(self, pieces) -> Iterator[tuple[int, dict[int, tuple[float, bool]]]]:
        """The same, after all have passed through all blocks."""
        planned = [rows for batch in _plan(_group_rows(pieces), self.token_budget, False) for rows in batch.pieces]
        batches = dict(ranks().turns(planned))
        ids = {str(n): _padded([row.context + row.suffix for row in rows], "cpu") for n, rows in batches.items()}
        states = final_states(self._residence, ids, progress=self.progress) if ids else {}
        with self._residence.head() as model:
            for number, hidden in zip(batches, states.values(), strict=True):
                yield number, _answers(model, batches[number], hidden.to(self._device))


def _n_appended(tokenizer) -> int:
    """How many special tokens the tokenizer puts after every text."""
    whole, bare = (tokenizer.encode("a", add_special_tokens=add) for add in (True, False))
    n = len(whole) - len(bare)
    starts = [start for start in range(n + 1) if whole[start : start + len(bare)] == bare]
    return n - starts[-1] if starts else 0


def _score_batch(model, batch: _Batch) -> dict[int, tuple[float, bool]]:
    """`{request index: (log-probability of its target in nats, target is what greedy decoding gives)}`."""
    answers = {}
    for rows, hidden in _hidden(model, batch):
        answers |= _answers(model, rows, hidden, batch.shared)
    return answers


@torch.no_grad()
def _answers(model, rows: Sequence[_Row], hidden: Tensor, shared: int = 0) -> dict[int, tuple[float, bool]]:
    """The same of some rows, from their final hidden states [rows, tokens after the shared context, hidden]."""
    where, tokens, lengths = [], [], []
    for number, row in enumerate(rows):
        start = len(row.context) - shared - 1
        for _, target in row.requests:
            where += [(number, start + step) for step in range(len(target))]
            tokens += target
            lengths.append(len(target))
    at = torch.tensor(where, device=hidden.device).T
    logprobs, greedy = _token_logprobs(model, hidden[at[0], at[1]], torch.tensor(tokens, device=hidden.device))
    indices = [index for row in rows for index, _ in row.requests]
    parts = zip(indices, logprobs.cpu().split(lengths), greedy.cpu().split(lengths), strict=True)
    return {index: (float(part.sum()), bool(same.all())) for index, part, same in parts}


@torch.no_grad()
def _hidden(model, batch: _Batch) -> Iterator[tuple[tuple[_Row, ...], Tensor]]:
    """Each piece's rows with their final hidden states [rows, tokens after the shared context, hidden]."""
    device = model.get_input_embeddings().weight.device
    if not batch.shared:
        for rows in batch.pieces:
            yield rows, final_hidden(model, _padded([row.context + row.suffix for row in rows], device))
        return
    heads = torch.tensor([context[: batch.shared] for context in batch.contexts], device=device)
    first = model.base_model(input_ids=heads, use_cache=True).past_key_values
    for number, rows in enumerate(batch.pieces):
        # Running a piece appends to its cache, so every piece but the last works on a copy.
        cache = copy.deepcopy(first) if number < len(batch.pieces) - 1 else first
        cache.batch_select_indices(torch.tensor([row.group for row in rows], device=device))
        ids = _padded([row.context[batch.shared :] + row.suffix for row in rows], device)
        yield rows, model.base_model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state


def _padded(rows: list[tuple[int, ...]], device: torch.device | str) -> Tensor:
    """Token ids [rows, longest], filled up on the right with each row's last token.

    Filler on the right never reaches earlier positions of a causal model, so no attention mask is needed; a
    padding token there would make some models warn about the missing mask.
    """
    width = max(map(len, rows))
    return torch.tensor([row + row[-1:] * (width - len(row)) for row in rows], device=device)


def _token_logprobs(model, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Per hidden state, one token's log-probability in float32, and whether it is more likely than every other token.

    Tokens that are equally likely are all none: greedy decoding would give only one of them.
    """
    n_vocab = model.get_output_embeddings().weight.shape[0]
    step = max(1, _LOGITS_AT_ONCE // n_vocab)
    logprobs, greedy = [], []
    for states, wanted in zip(hidden.split(step), tokens.split(step), strict=True):
        # The head's product is fastest in large blocks, what follows in blocks that stay in the processor's cache.
        slices = head_logits(model, states).split(max(1, step // 8)), wanted.split(max(1, step // 8))
        for logits, token in zip(*slices, strict=True):
            logits = logits.float()
            picked, best = logits.gather(-1, token[:, None])[:, 0], logits.amax(-1)
            logprobs.append(picked - logits.logsumexp(-1))
            first = picked == best
            rows = first.nonzero()[:, 0]  # only these may be tied, and counting costs ten times what a maximum does
            first[rows] = torch.count_nonzero(logits[rows] == best[rows, None], dim=-1) == 1
            greedy.append(first)
    return _check_finite(torch.cat(logprobs)), torch.cat(greedy)


@torch.no_grad()
def _can_share(model) -> bool:
    """Whether a cached context gives the same answers as the whole row: tried out on a few tokens."""
    context, suffixes = tuple(range(1, 7)), ((7, 8), (9, 10, 11))
    rows = tuple(_group_rows([(context, suffix) for suffix in suffixes])[0])
    try:
        apart = _score_batch(model, _Batch((), 0, (rows,)))
        together = _score_batch(model, _Batch((context,), len(context) - 1, tuple((row,) for row in rows)))
    except (AttributeError, NotImplementedError, TypeError, ValueError, RuntimeError):
        return False  # no key-value cache, one that cannot be repeated, or outputs that are not finite
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    return all(abs(together[i][0] - apart[i][0]) <= tolerance * max(1.0, abs(apart[i][0])) for i in apart)


InMemoryLM = _InMemoryLM  # as outside checks know it
