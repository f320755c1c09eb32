"""A model that is read block by block says what the loaded model says."""

import pytest
import torch

from crosscal.disk import StreamedModel
from crosscal.engine.driver import Residence, final_states
from crosscal.errors import InputError
from crosscal.models import final_hidden, head_logits, load_model
from tests.unit.families import FAMILIES, random_windows, save_tiny

TEXTS = {"a": random_windows(5), "b": random_windows(3, length=17, seed=1)}
QUIET = {"progress": False}


def all_logits(residence, **options):
    states = final_states(residence, TEXTS, **options, **QUIET)
    with residence.head() as model, torch.no_grad():
        return {name: head_logits(model, hidden) for name, hidden in states.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_logits_are_those_of_the_loaded_model(family, tmp_path):
    save_tiny(tmp_path, family)
    streamed, loaded = StreamedModel(tmp_path, dtype="float32", **QUIET), load_model(tmp_path, dtype="float32")
    with torch.no_grad():
        expected = {name: loaded.model(tokens).logits for name, tokens in TEXTS.items()}
    for residence in (streamed, Residence(loaded.model)):
        for _ in range(2):  # a model can be asked again
            logits = all_logits(residence)
            assert all(torch.equal(logits[name], expected[name]) for name in TEXTS)
    assert (streamed.fingerprint, streamed.name) == (loaded.fingerprint, loaded.name)
    assert streamed.tokenizer.get_vocab() == loaded.tokenizer.get_vocab()
    assert all(parameter.is_meta for parameter in streamed.model.parameters())


def test_the_size_of_a_micro_batch_decides_what_runs_together(tmp_path):
    save_tiny(tmp_path)
    streamed, loaded = StreamedModel(tmp_path, dtype="float32", **QUIET), load_model(tmp_path, dtype="float32")
    states = final_states(streamed, TEXTS, micro_batch=2, **QUIET)
    with torch.no_grad():
        for name, tokens in TEXTS.items():
            parts = [final_hidden(loaded.model, part) for part in tokens.split(2)]
            assert torch.equal(states[name], torch.cat(parts))


def test_a_head_that_does_more_is_refused(tmp_path, monkeypatch):
    save_tiny(tmp_path)
    streamed = StreamedModel(tmp_path, dtype="float32", **QUIET)
    monkeypatch.setattr("crosscal.models.heads.head_logits", lambda model, hidden: 2 * head_logits(model, hidden))
    with pytest.raises(InputError, match="does more than a linear map"), streamed.head():
        pass


def test_what_cannot_be_streamed_says_what_to_do(tmp_path, monkeypatch):
    save_tiny(tmp_path)
    monkeypatch.setattr("crosscal.models.layout.rename_source_key", lambda key, *_: (key, "pattern"))
    with pytest.raises(InputError, match="in a form that cannot be made again; load it with load_model"):
        StreamedModel(tmp_path)
