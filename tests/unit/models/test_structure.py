"""Blocks, layers and heads of every family, found by structure."""

import pytest
import torch
from torch import nn

from crosscal.errors import InputError
from crosscal.models import decoder_blocks, final_hidden, head_logits, linear_layers
from crosscal.models.heads import check_head
from tests.unit.families import FAMILIES, random_windows, tiny_model

LAYERS = {"gpt2": 4, "gpt_neox": 4, "opt": 6}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def test_blocks_and_layers_are_found(family):
    blocks = decoder_blocks(tiny_model(family))
    assert len(blocks) == 3
    assert [len(linear_layers(block)) for block in blocks] == [LAYERS.get(family, 7)] * 3


def test_embeddings_and_head_are_not_among_them(family):
    model = tiny_model(family)
    inside = {id(layer.module) for block in decoder_blocks(model) for layer in linear_layers(block)}
    assert id(model.get_output_embeddings()) not in inside
    assert id(model.get_input_embeddings()) not in inside


def test_a_weight_is_d_out_by_d_in_and_can_be_overwritten(family):
    for layer in linear_layers(decoder_blocks(tiny_model(family))[0]):
        d_out, d_in = layer.weight.shape
        inputs = torch.randn(2, d_in)
        plain = layer.module(inputs) - (0 if layer.module.bias is None else layer.module.bias)
        torch.testing.assert_close(plain, inputs @ layer.weight.T)
        layer.write(torch.arange(float(d_out * d_in)).view(d_out, d_in))
        assert torch.equal(layer.weight.flatten(), torch.arange(float(d_out * d_in)))


def test_head_and_body_give_the_models_own_logits(family):
    model, tokens = tiny_model(family), random_windows(2)
    torch.testing.assert_close(head_logits(model, final_hidden(model, tokens)), model(tokens).logits)
    check_head(model)


def test_soft_capping_is_part_of_the_head():
    model = tiny_model("gemma3_text")
    model.config.final_logit_softcapping = 0.1
    tokens = random_windows(2)
    torch.testing.assert_close(head_logits(model, final_hidden(model, tokens)), model(tokens).logits)


def test_an_unusual_head_is_refused():
    model = tiny_model("llama")
    model.lm_head.register_forward_hook(lambda module, args, output: output * args[0].shape[1])
    model.forward = lambda input_ids, use_cache: type("Out", (), {"logits": torch.ones(1, 8, 128)})
    with pytest.raises(InputError, match="head of LlamaForCausalLM"):
        check_head(model)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(InputError, match="no list of decoder blocks"):
        decoder_blocks(nn.Sequential(nn.Linear(2, 2)))
