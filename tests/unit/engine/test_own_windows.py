"""Calibration tokens handed over in Python: what a tokenizer returns is taken, anything unclear refused."""

import numpy as np
import pytest
import torch

from crosscal import compress
from crosscal.engine.gather import gather_statistics
from crosscal.engine.windows import _rows
from crosscal.errors import InputError
from crosscal.metrics import perplexity
from crosscal.metrics.text_scores import dense_reference
from crosscal.types import Grid, Unstructured
from tests.unit.families import VOCAB, random_windows, tiny_model, tiny_tokenizer

HALF, QUIET = Unstructured(0.5), {"progress": False}
WORDS = ["markets fall", "rain falls on the plain while markets fall", "the court"]


def tokenized(side="right", **options):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token, tokenizer.padding_side = "<unk>", side
    return tokenizer(WORDS, **options)


@pytest.mark.parametrize(("method", "target"), [("wanda", HALF), ("gptq", Grid(4)), ("dpruner", HALF)])
def test_padding_counts_nowhere(method, target):
    reports, models = [], []
    ways = [tokenized(), tokenized(padding=True, return_tensors="pt"), tokenized("left", padding=True)]
    for text in (*ways, dict(ways[1])):
        models.append(tiny_model("llama"))
        texts = {"c4": random_windows(2, 8), "own": text}
        reports.append(compress(models[-1], method, target, calibration=texts, **QUIET))
    n_tokens = sum(map(len, ways[0]["input_ids"]))
    assert {report.layers[0].tokens["own"] for report in reports} == {n_tokens}
    for model in models[1:]:
        assert all(map(torch.equal, models[0].parameters(), model.parameters()))


def test_rows_run_alone():
    model, rows = tiny_model("llama"), tokenized()["input_ids"]
    together = gather_statistics(model, {"own": tokenized(padding=True)}, **QUIET).groups(1, {"own": 1.0})
    alone = [gather_statistics(model, {"own": torch.tensor([row])}, **QUIET).groups(1, {"own": 1.0}) for row in rows]
    shares = [len(row) / sum(map(len, rows)) for row in rows]
    for number, (_, stats) in enumerate(together):
        expected = sum(share * one[number][1].gram for share, one in zip(shares, alone, strict=True))
        assert torch.allclose(stats.gram, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("windows", "sentence"),
    [
        (random_windows()[0], r"torch.int64 of shape \(24,\); give token ids as a tensor"),
        (random_windows().float(), "torch.float32 of shape"),
        (random_windows() > 5, "torch.bool of shape"),
        (-random_windows(), "partly negative"),
        (torch.zeros(0, 16, dtype=torch.int64), r"of shape \(0, 16\)"),
        (torch.zeros(2, 0, dtype=torch.int64), r"of shape \(2, 0\)"),
        (random_windows().tolist(), "of type list"),
        ([torch.arange(3, 40), torch.arange(3, 20)], "of type list"),
        (np.ones((2, 8), dtype=np.int64), "of type ndarray"),
        ("the court", "of type str"),
        (None, "of type NoneType"),
        ({"tokens": random_windows()}, "of type dict"),
        (tiny_tokenizer()("the court"), "of type BatchEncoding"),
        (tiny_tokenizer()(["the court", ""]), "of type BatchEncoding"),
    ],
)
def test_windows_that_are_none_are_refused(windows, sentence):
    with pytest.raises(InputError, match=f"the windows of 'own' are .*{sentence}"):
        _rows("own", windows)


@pytest.mark.parametrize(
    ("windows", "sentence"),
    [
        (random_windows() + VOCAB, "token .* of 'own' is outside the model's vocabulary of"),
        (tokenized(padding=True, return_tensors="pt")["input_ids"], "are padded; give what the tokenizer returns"),
        (tokenized("left", padding=True, return_tensors="pt")["input_ids"], "are padded"),
    ],
)
def test_windows_that_do_not_fit_the_model_are_refused(windows, sentence):
    model = tiny_model("llama")
    with pytest.raises(InputError, match=sentence):
        compress(model, "wanda", HALF, calibration={"own": windows}, **QUIET)
    with pytest.raises(InputError, match=sentence):
        gather_statistics(model, {"own": windows}, **QUIET)


def test_shorter_whole_numbers_are_taken():
    model, other = tiny_model("llama"), tiny_model("llama")
    compress(model, "wanda", HALF, calibration={"own": random_windows().int()}, **QUIET)
    compress(other, "wanda", HALF, calibration={"own": random_windows()}, **QUIET)
    assert all(map(torch.equal, model.parameters(), other.parameters()))


@pytest.mark.parametrize(
    ("windows", "sentence"),
    [
        (random_windows() + VOCAB, "outside the model's vocabulary"),
        (random_windows(length=1), "have one token"),
        (tokenized(padding=True, return_tensors="pt"), "differ in length; cut them to one"),
        (tokenized(padding=True, return_tensors="pt")["input_ids"], "are padded"),
    ],
)
def test_windows_that_cannot_be_scored_are_refused(windows, sentence):
    model = tiny_model("llama")
    for call in (lambda: perplexity(model, windows), lambda: dense_reference(model, {"own": windows})):
        with pytest.raises(InputError, match=sentence):
            call()


def test_what_a_tokenizer_returns_is_scored():
    text = tokenized(truncation=True, max_length=8)
    assert perplexity(tiny_model("llama"), text) == perplexity(tiny_model("llama"), torch.tensor(text["input_ids"]))
