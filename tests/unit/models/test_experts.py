"""Stacked experts seen as layers of their own: same results, same names, hooks on routed tokens, gradients."""

import copy

import pytest
import torch
from torch import nn

from crosscal.errors import InputError
from crosscal.models import LinearLayer, decoder_blocks, experts_apart, forward_order, inventory, linear_layers
from tests.unit.families import random_windows, tiny_model

MIXTURES = ("qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3", "llama4_text", "glm4_moe", "granitemoe", "jetmoe", "dbrx")
IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")


def stacked(model):
    return [layer for block in decoder_blocks(model) for layer in linear_layers(block) if layer.stacked]


def rows_by_layer(model, tokens):
    """What enters each stacked layer, and the logits, with experts apart."""
    seen, layers = {}, stacked(model)

    def note(layer):
        return lambda _, args: seen.setdefault(layer.name, []).append(args[0])

    hooks = [layer.module.register_forward_pre_hook(note(layer)) for layer in layers]
    with experts_apart(model):
        logits = model(tokens).logits
    for hook in hooks:
        hook.remove()
    return seen, logits


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_apart_gives_the_same_logits(family):
    model, tokens = tiny_model(family), random_windows(2)
    names = list(model.state_dict())
    for implementation in IMPLEMENTATIONS:
        model.config._experts_implementation = implementation
        before = model(tokens).logits
        seen, logits = rows_by_layer(model, tokens)
        torch.testing.assert_close(logits, before, rtol=1e-4, atol=1e-5)
        assert seen
        assert torch.equal(model(tokens).logits, before)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("family", MIXTURES)
def test_a_hook_sees_the_tokens_routed_to_its_expert(family):
    model, tokens = tiny_model(family), random_windows(2)
    seen, logits = rows_by_layer(model, tokens)
    layer = next(layer for layer in stacked(model) if layer.name in seen and len(seen[layer.name][0]))
    assert layer.weight.shape[1] == seen[layer.name][0].shape[1]
    assert 0 < len(seen[layer.name][0]) < tokens.numel()
    layer.write(torch.zeros_like(layer.weight))
    assert not torch.equal(model(tokens).logits, logits)


def test_one_hook_counts_each_choice_of_the_router_once():
    model, tokens = tiny_model("qwen3_moe"), random_windows(2)
    seen, _ = rows_by_layer(model, tokens)
    first = [sum(map(len, rows)) for name, rows in seen.items() if name.endswith("gate_up_proj")]
    assert sum(first) == 2 * tokens.numel() * model.config.num_experts_per_tok  # blocks share names


@pytest.mark.parametrize("family", MIXTURES)
def test_written_experts_are_rows_or_columns_of_the_stack(family):
    model = tiny_model(family)
    for block in decoder_blocks(model):
        for layer in linear_layers(block):
            new = torch.randn_like(layer.weight)
            layer.write(new)
            assert torch.equal(layer.weight, new)
            assert torch.equal(layer.seen(block.get_parameter(layer.parameter_name)), new)
    assert {"expert", "mixture"} <= vars(stacked(model)[0]).keys()


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "llama4_text"])
def test_gradients_reach_the_stack(family):
    model, tokens = tiny_model(family), random_windows(2)
    layers = stacked(model)
    parameters = {id(layer.parameter): layer.parameter.requires_grad_(True) for layer in layers}

    def gradients():
        model(tokens).logits.square().sum().backward()
        made = [parameter.grad for parameter in parameters.values()]
        for parameter in parameters.values():
            parameter.grad = None
        return made

    before = gradients()
    with experts_apart(model):
        after = gradients()
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)


def test_weights_replaced_inside_are_used():
    model, tokens = tiny_model("mixtral"), random_windows(1)
    owner = model.model.layers[0].mlp.experts
    with experts_apart(model), experts_apart(model):
        before = model(tokens).logits
        owner._parameters["down_proj"] = nn.Parameter(torch.zeros_like(owner._parameters["down_proj"]))
        assert not torch.equal(model(tokens).logits, before)
        assert not stacked(model)[1].weight.any()
    assert isinstance(owner.down_proj, nn.Parameter)


def test_a_copy_has_layers_of_its_own():
    model = tiny_model("mixtral")
    stacked(model)
    other = copy.deepcopy(model)
    stacked(other)[0].write(torch.zeros_like(stacked(other)[0].weight))
    assert stacked(model)[0].weight.any()


class Unknown(nn.Module):
    """Experts as code that a model brings along may keep them."""

    def __init__(self, transposed, inner=6):
        super().__init__()
        up, down = ((4, 2 * inner), (inner, 4)) if transposed else ((2 * inner, 4), (4, inner))
        self.gate_up, self.down = nn.Parameter(torch.randn(3, *up)), nn.Parameter(torch.randn(3, *down))


@pytest.mark.parametrize("transposed", [False, True])
def test_an_unknown_stack_is_judged_by_its_shapes(transposed):
    block = nn.ModuleDict({"experts": type("MyExperts", (Unknown,), {})(transposed)})
    shapes = {layer.role: tuple(layer.weight.shape) for layer in linear_layers(block)}
    assert shapes == {"experts.*.gate_up": (12, 4), "experts.*.down": (4, 6)}


def test_a_stack_of_unknown_layout_is_listed():
    model = nn.Module()
    model.layers = nn.ModuleList(
        [nn.ModuleDict({"up": nn.Linear(4, 4), "experts": type("MyExperts", (Unknown,), {})(0, 4)})]
    )
    reasons = {part.name: part.reason for part in inventory(model).left_out}
    assert reasons["layers.0.experts.down"] == "cannot be expressed as a linear layer"


def test_a_product_in_the_other_layout_is_refused():
    class MyExperts(Unknown):
        def forward(self, states):
            return states @ self.gate_up[1]

    owner = MyExperts(transposed=True)
    assert torch.equal(owner(torch.eye(4)), owner.gate_up[1])
    owner._parameters["gate_up"] = nn.Parameter(owner.gate_up.transpose(1, 2).contiguous())
    owner.hidden_size = 4
    with experts_apart(owner), pytest.raises(InputError, match="stores 'gate_up' in another layout"):
        owner(torch.ones(2, 12))


def _expert_layers(count, mixture):
    return [
        LinearLayer(f"experts.{n}.{leaf}", nn.Identity(), "", n, mixture)
        for n in range(count)
        for leaf in ("gate", "up", "down")
    ]


def test_forward_order_places_layers_that_no_token_reached():
    mixture = nn.Identity()
    experts = _expert_layers(4, mixture)
    query, out, late = (LinearLayer(name, nn.Identity()) for name in ("q", "o", "late"))
    layers = [query, out, *experts, late]
    of = {layer.name: layer for layer in layers}
    reached = [[query], [of["experts.1.gate"], of["experts.1.up"]], [of["experts.1.down"]]]
    order = [[layer.name.removeprefix("experts.") for layer in group] for group in forward_order(layers, reached)]
    expected = (
        [["q"], ["o"]] + [part for n in range(4) for part in ([f"{n}.gate", f"{n}.up"], [f"{n}.down"])] + [["late"]]
    )
    assert order == expected
    assert [len(group) for group in forward_order(experts, [])] == [1] * 12
