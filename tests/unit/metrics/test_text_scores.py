"""Perplexity and divergences over windows: against whole logits, and in bounded memory."""

import math

import pytest
import torch

from crosscal.disk import StreamedModel
from crosscal.engine.driver import compress
from crosscal.errors import InputError
from crosscal.metrics import js_divergence, kl_divergence, perplexity, text_scores, token_nll
from crosscal.metrics.evaluate import evaluate
from crosscal.metrics.text_scores import _score_texts, dense_reference
from crosscal.models import LoadedModel, load_model
from crosscal.types import Unstructured
from tests.unit.families import FAMILIES, VOCAB, random_windows, save_tiny, tiny_model


def test_perplexity_of_a_uniform_model():
    model = tiny_model("llama")
    model.lm_head.weight.zero_()
    assert perplexity(model, random_windows()) == pytest.approx(VOCAB, rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_nll_equals_the_models_own_loss(family):
    model, tokens = tiny_model(family), random_windows()
    assert token_nll(model, tokens).mean().item() == pytest.approx(model(tokens, labels=tokens).loss.item(), rel=1e-5)


def test_divergences_equal_those_of_whole_logits():
    model, tokens = tiny_model("llama"), random_windows()
    reference = dense_reference(model, {"text": tokens})
    dense = model(tokens).logits[:, :-1]
    compress(model, "magnitude", Unstructured(0.5), progress=False)
    scores = _score_texts(model, {"text": tokens}, reference, progress=False)["text"].per_token
    pruned = model(tokens).logits[:, :-1]
    torch.testing.assert_close(scores["js_divergence"], js_divergence(dense, pruned), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(scores["kl_divergence"], kl_divergence(dense, pruned), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(scores["kl_divergence_reverse"], kl_divergence(pruned, dense), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(scores["nll"], token_nll(model, tokens))
    assert torch.equal(scores["top1_agreement"], (dense.argmax(-1) == pruned.argmax(-1)).float())


def test_divergence_of_the_dense_model_is_zero():
    model, tokens = tiny_model("gpt2"), random_windows()
    reference = dense_reference(model, {"text": tokens})
    scores = _score_texts(model, {"text": tokens}, reference, progress=False)["text"]
    assert max(scores.per_window("js_divergence")) < 1e-7
    assert scores.per_window("top1_agreement") == [1.0] * len(tokens)


def test_logits_exist_for_a_chunk_of_positions_only(monkeypatch):
    model, tokens, most = tiny_model("llama"), random_windows(8, 48), []
    inner = text_scores.head_logits
    monkeypatch.setattr(
        text_scores, "head_logits", lambda m, h, o=None: most.append(h[..., 0].numel()) or inner(m, h, o)
    )
    monkeypatch.setattr(text_scores, "_POSITIONS", 32)
    reference = dense_reference(model, {"text": tokens})
    _score_texts(model, {"text": tokens}, reference, progress=False)["text"]
    assert max(most) == 32


@pytest.fixture
def streamed(tmp_path):
    """A model on disk, read block by block, and the same one in memory."""
    save_tiny(tmp_path)
    return StreamedModel(tmp_path, dtype="float32", progress=False), load_model(tmp_path, dtype="float32")


def test_streamed_scores_are_those_of_the_loaded_model(streamed):
    on_disk, loaded = streamed
    tokens = random_windows(5)
    assert perplexity(on_disk, tokens) == perplexity(loaded, tokens)
    assert torch.equal(token_nll(on_disk, tokens, 3), token_nll(loaded.model, tokens, 3))


def test_divergences_of_streamed_and_loaded_are_equal(streamed, tmp_path):
    on_disk, loaded = streamed
    texts = {"a": random_windows(5), "b": random_windows(3, length=17, seed=1)}
    references = dense_reference(on_disk, texts, progress=False), dense_reference(loaded.model, texts, progress=False)
    assert all(parameter.is_meta for parameter in on_disk.model.parameters())
    tiny_model("llama", seed=1).save_pretrained(tmp_path / "other")
    other = StreamedModel(tmp_path / "other", dtype="float32", progress=False)
    models = other, LoadedModel(tiny_model("llama", seed=1), None, "other", "0")
    found = [evaluate(m, texts, dense=r, progress=False).texts for m in models for r in references]
    for name in texts:
        for scores in found[1:]:
            assert list(scores[name].per_token) == list(found[0][name].per_token)
            for metric, values in scores[name].per_token.items():
                assert torch.equal(values, found[0][name].per_token[metric])


def test_evaluate_scores_texts_by_name():
    loaded = LoadedModel(tiny_model("llama"), None, "tiny", "0")
    tokens = random_windows()
    found = evaluate(loaded, {"text": tokens}, progress=False)
    assert math.exp(found.texts["text"].per_token["nll"].mean()) == pytest.approx(perplexity(loaded, tokens), rel=1e-5)
    assert list(found.texts["text"].per_token) == ["nll"]


def test_perplexities_beyond_all_numbers_are_one_sentence():
    model = tiny_model("llama")
    model.lm_head.weight.mul_(1e6)
    with pytest.raises(InputError, match="nats per token, a perplexity beyond all numbers"):
        perplexity(model, random_windows())


def test_references_of_non_finite_outputs_are_one_sentence():
    model = tiny_model("llama")
    model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="NaN or infinite"):
        dense_reference(model, {"text": random_windows()}, progress=False)


def test_non_finite_outputs_are_one_sentence():
    model = tiny_model("llama")
    model.lm_head.weight.fill_(float("inf"))
    with pytest.raises(InputError, match="NaN or infinite"):
        token_nll(model, random_windows())
    with pytest.raises(InputError, match="longer windows"):
        token_nll(model, random_windows(length=1))
