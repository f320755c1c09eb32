"""Text that a model writes itself: what decides a draw, which windows go, and what an interrupt leaves behind."""

from types import SimpleNamespace

import pytest
import torch

from crosscal.errors import InputError
from crosscal.text import domain_of, write_text, written
from crosscal.text.written import _own_nll, _sample, _Sampling
from tests.unit.families import FAMILIES, tiny_model, tiny_tokenizer
from tests.unit.text.conftest import byte_tokenizer

TEXTS = [f"{word}{i} and more" for i, word in enumerate(("north", "south", "east", "west", "up", "down", "left"))]


def loaded_as(family="llama", tokenizer=None, sharpness=8.0):
    """A tiny model as `load_model` would return it, with outputs sharp enough that windows differ in likelihood."""
    model = tiny_model(family)
    model.get_output_embeddings().weight.data.mul_(sharpness)
    fingerprint, device = f"{family}-{sharpness}", torch.device("cpu")
    return SimpleNamespace(model=model, tokenizer=tokenizer or tiny_tokenizer(), fingerprint=fingerprint, device=device)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty place for written; the embedded texts stay where they are."""
    monkeypatch.setattr(written, "cache_dir", lambda: tmp_path)
    return tmp_path / "written"


@pytest.fixture
def loaded():
    return loaded_as()


@pytest.fixture
def calls(monkeypatch):
    """Counts the written that are really drawn."""
    counted = []

    def counting(model, prompt, *rest):
        counted.append(len(prompt))
        return _sample(model, prompt, *rest)

    monkeypatch.setattr(written, "_sample", counting)
    return counted


def write(loaded, **changes):
    settings = {"n_windows": 4, "length": 24, "seed": 3, "prefixes": TEXTS, "prefix_tokens": 3, "progress": False}
    return write_text(loaded, **(settings | changes))


def forget(cache):
    for path in cache.iterdir():
        path.unlink()


def full_nll(model, tokens, n_given):
    """The mean loss of each window in one pass, in float64."""
    losses = []
    for window in tokens:
        log_p = model(input_ids=window[None], use_cache=False).logits[0].double().log_softmax(-1)
        losses.append(-sum(log_p[t - 1, window[t]] for t in range(n_given, len(window))) / (len(window) - n_given))
    return torch.stack(losses)


def test_write_text_starts_with_the_prefixes(loaded):
    windows = write(loaded, n_windows=16, drop=0)
    assert windows.tokens.shape == (16, 24)
    assert windows.tokens.dtype == torch.int64
    assert (windows.source, windows.split, windows.seed) == ("self", "calibration", 3)
    assert domain_of(windows.source) == "self-written"
    known = {tuple(loaded.tokenizer(text, add_special_tokens=False)["input_ids"][:3]) for text in TEXTS}
    heads = [tuple(window[:3].tolist()) for window in windows.tokens]
    assert set(heads) == known  # 16 windows, 7 texts: each begins two or three of them
    assert heads[:7] == heads[7:14]
    assert len({tuple(window.tolist()) for window in windows.tokens}) == 16


def test_write_text_puts_the_start_token_first(starting_tokenizer):
    family = "llama"
    loaded = loaded_as(family, starting_tokenizer)
    tokens = write(loaded, prefixes=["!!! and", "!!! or"]).tokens  # of the first 128 tokens, which the model has
    assert (tokens[:, 0] == starting_tokenizer.bos_token_id).all()
    assert (tokens[:, 1:4] == starting_tokenizer.convert_tokens_to_ids("!")).all()
    assert tokens.shape == (4, 24)


def test_special_tokens_are_never_sampled(loaded):
    loaded.model.get_output_embeddings().weight.data[3:] *= 0.01  # the special ones are the likeliest by far
    loaded.model.generation_config.eos_token_id = [2, 40]
    tokens = write(loaded, n_windows=16, drop=0).tokens[:, 3:]
    assert not torch.isin(tokens, torch.tensor([0, 1, 2, 40])).any()


def test_write_text_is_the_same_without_the_cache(loaded, cache, calls):
    first, cached = write(loaded), write(loaded)
    assert calls == [16]
    forget(cache)
    again = write(loaded)
    assert calls == [16, 16]
    for other in (cached, again):
        assert torch.equal(first.tokens, other.tokens)
        assert first.fingerprint == other.fingerprint


@pytest.mark.parametrize(
    "change",
    [{"seed": 4}, {"top_k": 3}, {"top_p": 0.3}, {"temperature": 3.0}, {"prefixes": [f"x{t}" for t in TEXTS]}],
    ids=str,
)
def test_every_setting_decides(loaded, calls, change):
    one, other = write(loaded), write(loaded, **change)
    assert calls == [16, 16]
    assert not torch.equal(one.tokens, other.tokens)
    assert one.fingerprint != other.fingerprint


def test_write_text_draws_anew_for_other_weights(loaded, calls):
    write(loaded)
    loaded.fingerprint = "other"
    write(loaded)
    loaded.device = SimpleNamespace(type="other")
    with pytest.raises(TypeError):  # there is no such device, but the batch in the cache is not taken for it
        write(loaded)
    assert calls == [16, 16]


def test_write_text_draws_anew_for_another_config(loaded, calls, monkeypatch):
    write(loaded)
    monkeypatch.setattr(loaded.model.config, "rms_norm_eps", 0.5, raising=False)
    write(loaded)
    assert calls == [16, 16]


def test_the_random_state_neither_matters_nor_changes(loaded, cache):
    torch.manual_seed(1)
    first = write(loaded)
    forget(cache)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(write(loaded).tokens, first.tokens)
    assert torch.equal(torch.get_rng_state(), before)


def test_write_text_leaves_the_model_s_settings_alone(loaded, cache):
    first = write(loaded)
    forget(cache)
    own = loaded.model.generation_config
    own.repetition_penalty, own.no_repeat_ngram_size, own.min_p = 5.0, 2, 0.5
    assert torch.equal(write(loaded).tokens, first.tokens)
    assert loaded.model.generation_config is own
    assert own.repetition_penalty == 5.0


def test_only_the_likeliest_tokens_are_sampled(loaded):
    tokens = write(loaded, top_k=1, n_windows=7, drop=0, prefixes=TEXTS).tokens
    logits = loaded.model(input_ids=tokens).logits[:, :-1]
    logits[..., :3] = -torch.inf
    assert torch.equal(logits.argmax(-1)[:, 2:], tokens[:, 3:])


def test_write_text_varies_by_batch_and_seed(loaded):
    drawn = [write(loaded, n_windows=32, drop=0, prefixes=TEXTS[:1], seed=seed).tokens for seed in (3, 4)]
    assert len({tuple(window.tolist()) for window in torch.cat(drawn)}) == 64


def test_a_larger_draw_begins_with_a_smaller_one(loaded, calls):
    small, large = write(loaded, n_windows=10, drop=0), write(loaded, n_windows=40, drop=0)
    assert torch.equal(large.tokens[:10], small.tokens)
    assert len({tuple(window.tolist()) for window in large.tokens}) == 40
    assert calls == [16, 16, 16]


def test_write_text_drops_the_least_likely_windows(loaded):
    drawn = write(loaded, n_windows=20, drop=0).tokens
    kept = write(loaded, n_windows=16, drop=0.2).tokens
    nll = full_nll(loaded.model, drawn, 3)
    assert nll.max() - nll.min() > 0.1
    best = nll.argsort()[:16].sort().values
    assert torch.equal(kept, drawn[best])
    assert best.tolist() != list(range(16))


@pytest.mark.parametrize(
    ("n", "drop", "drawn"), [(10, 0.9, 100), (7, 0.3, 10), (4, 0.2, 5), (5, 0.2, 7), (3, 0, 3), (128, 0.2, 160)]
)
def test_how_many_are_drawn(loaded, monkeypatch, n, drop, drawn):
    """Scores are faked: the last `n` drawn are better than those before; what a whole batch holds beyond, best."""
    total = -(-drawn // 16) * 16
    monkeypatch.setattr(written, "_sample", lambda model, prompt, *rest: prompt.repeat(1, 8))
    fake = (1.0 if i < drawn - n else 0.5 if i < drawn else 0.0 for i in range(total))
    monkeypatch.setattr(written, "_own_nll", lambda model, tokens, given: torch.tensor([next(fake) for _ in tokens]))
    windows = write(loaded, n_windows=n, drop=drop)
    everything = write(loaded, n_windows=drawn, drop=0)
    assert torch.equal(windows.tokens, everything.tokens[drawn - n :])
    assert next(fake, None) is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("positions", [5, 256])
def test_own_nll_is_the_loss_of_one_pass(family, positions, monkeypatch):
    monkeypatch.setattr(written, "_POSITIONS", positions)
    loaded = loaded_as(family)
    tokens = _sample(loaded.model, torch.tensor([[5, 6], [7, 8], [9, 10]]), _Sampling(24), 0, [0, 1, 2])
    for given in (1, 2, 23):
        expected = full_nll(loaded.model, tokens, given).float()
        torch.testing.assert_close(_own_nll(loaded.model, tokens, given), expected, rtol=1e-4, atol=1e-4)


def test_outputs_that_are_not_finite_get_a_sentence(loaded):
    loaded.model.get_output_embeddings().weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match="NaN or infinite on its own text; load it in float32"):
        _own_nll(loaded.model, torch.ones(2, 8, dtype=torch.int64), 1)


def test_an_interrupted_call_continues(loaded, cache, calls, monkeypatch):
    whole = write(loaded, n_windows=40)
    assert calls == [16] * 4  # 50 windows are drawn
    forget(cache)
    generate, begun = loaded.model.generate, []

    def interrupted(*args, **options):
        begun.append(True)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return generate(*args, **options)

    own = loaded.model.generation_config
    state = torch.get_rng_state()
    monkeypatch.setattr(loaded.model, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(loaded, n_windows=40)
    assert len(list(cache.iterdir())) == 1
    assert loaded.model.generation_config is own
    assert torch.equal(torch.get_rng_state(), state)
    again = write(loaded, n_windows=40)
    assert len(begun) == 2 + 3
    assert torch.equal(again.tokens, whole.tokens)
    assert again.fingerprint == whole.fingerprint


def test_a_damaged_batch_is_drawn_again(loaded, cache):
    first = write(loaded)
    (path,) = cache.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(write(loaded).tokens, first.tokens)
    assert path.stat().st_size > 100


def test_a_kill_while_writing_leaves_nothing(loaded, cache, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write(loaded)
    assert not list(cache.iterdir())


def test_a_cache_that_cannot_be_written_costs_a_line(loaded, cache, capsys):
    cache.write_text("a file where the folder should be")
    windows = write(loaded)
    assert "not kept: cannot write" in capsys.readouterr().err
    cache.unlink()
    assert torch.equal(write(loaded).tokens, windows.tokens)


def test_write_text_takes_prefixes_from_any_source(loaded, tmp_path):
    # The byte tokenizer knows every character, the model only the first tokens.
    loaded = loaded_as(tokenizer=byte_tokenizer())
    loaded.model.resize_token_embeddings(len(loaded.tokenizer))
    path = tmp_path / "notes.txt"
    path.write_text("\n\n".join(f"zzz number {i}" for i in range(30)))
    tokens = write(loaded, prefixes=str(path)).tokens
    assert {loaded.tokenizer.decode(window[:3]) for window in tokens} == {"zzz"}
    settings = {"n_windows": 2, "length": 12, "progress": False}
    by_default = write_text(loaded, **settings)
    assert torch.equal(by_default.tokens, write_text(loaded, prefixes="c4", prefix_tokens=4, **settings).tokens)


def test_progress_counts_every_token_once(loaded, monkeypatch):
    bars = []

    class Bar(written.tqdm):
        def __init__(self, **options):
            super().__init__(**options | {"delay": 0})
            bars.append(self)

    monkeypatch.setattr("crosscal.text.written.tqdm", Bar)
    for _ in range(2):  # drawn, then read
        write(loaded, n_windows=20, drop=0, progress=True)
    assert [bar.n for bar in bars] == [bar.total for bar in bars] == [32 * 24] * 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"n_windows": 0}, r"n_windows is 0; give a whole number of at least 1"),
        ({"seed": -1}, r"seed is -1; give a whole number"),
        ({"length": 3}, r"length is 3 and the prefix takes 3 tokens of it; give a greater one"),
        ({"length": 129}, r"length is 129 and the model was made for at most 128 tokens; give a smaller length"),
        ({"drop": 1.0}, r"drop is 1.0; give the fraction of windows to drop, from 0 to below 1"),
        ({"drop": -0.1}, r"drop is -0.1; give"),
        ({"drop": float("nan")}, r"drop is nan; give"),
        ({"prefix_tokens": 0}, r"prefix_tokens is 0; give a whole number of at least 1"),
        ({"prefix_tokens": 20}, r"no text of prefixes has 20 tokens; give longer texts or smaller prefix_tokens"),
        ({"prefixes": []}, r"no text of prefixes has 3 tokens"),
        ({"prefixes": "pubmet"}, r"there is no text source 'pubmet'; did you mean 'pubmed'\?"),
        ({"top_p": 0.0}, r"top_p is 0.0; give a number above 0 and at most 1"),
        ({"top_p": 1.5}, r"top_p is 1.5"),
        ({"top_k": -1}, r"top_k is -1; give a whole number of tokens, 0 for no limit"),
        ({"temperature": 0}, r"temperature is 0; give a number above 0"),
    ],
    ids=str,
)
def test_requests_that_cannot_be_met(loaded, calls, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        write(loaded, **changes)
    assert not calls


def test_write_text_needs_a_tokenizer_and_room():
    loaded = loaded_as("gpt2")
    with pytest.raises(InputError, match=r"at most 128 tokens"):
        write(loaded, length=200)
    loaded.tokenizer = None
    with pytest.raises(InputError, match=r"the model has no tokenizer, which prefixes need"):
        write(loaded)
