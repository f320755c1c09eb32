"""The inventory: every matrix is compressed, or left out with its reason; blocks are those of the text decoder."""

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, OPTConfig

from crosscal.errors import InputError
from crosscal.models import decoder_blocks, inventory
from tests.unit.families import FAMILIES, tiny_model

ROUTERS = {
    "qwen2_moe": ["mlp.gate", "mlp.shared_expert_gate"],
    "qwen3_moe": ["mlp.gate"],
    "llama4_text": ["feed_forward.router"],
    "phimoe": ["mlp.router"],
    "hunyuan_v1_moe": ["mlp.gate.wg"],
    "granitemoe": ["block_sparse_moe.router"],
    "jetmoe": ["mlp.router.layer", "self_attention.experts.router.layer"],
}


def reasons(made):
    told = {}
    for part in made.left_out:
        told.setdefault(part.reason, []).append(part.name)
    return told


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_families_are_compressed_whole(family):
    made = inventory(tiny_model(family))
    assert made.share == pytest.approx(1, abs=0.05)
    assert set(reasons(made)) <= {"embedding", "head", "outside the decoder's blocks"}
    assert [len(layers) for layers in made.layers] == [len(made.layers[0])] * len(made.blocks)


@pytest.mark.parametrize("family", ROUTERS)
def test_routers_stay_dense(family):
    model = tiny_model(family)
    made = inventory(model)
    expected = [f"{path}.{name}" for path in made.paths for name in ROUTERS[family]]
    assert sorted(reasons(made)["router"]) == sorted(expected)
    assert made.share > 0.95
    matrices = sum(p.numel() for b in made.blocks for n, p in b.named_parameters() if p.ndim > 1 and "bias" not in n)
    assert made.n_weights == matrices
    assert made.n_compressed == matrices - sum(part.n_weights for part in made.left_out if part.reason == "router")


def test_a_router_is_compressed_when_named():
    made = inventory(tiny_model("phimoe"), only=["*.router"])
    assert [layer.name for layer in made.layers[0]] == ["mlp.router"]


def test_small_gates_stay_dense():
    block = nn.ModuleDict({"up": nn.Linear(512, 512), "gate": nn.Linear(512, 2), "other": nn.Linear(2, 2)})
    model = nn.ModuleDict({"layers": nn.ModuleList([block, nn.ModuleDict({"gate": nn.Linear(512, 512)})])})
    made = inventory(model)
    assert reasons(made)["router"] == [] if False else True
    assert [[layer.name for layer in layers] for layers in made.layers] == [["up", "gate", "other"], ["gate"]]
    wide = nn.ModuleDict({"up": nn.Linear(2048, 2048), "gate": nn.Linear(2048, 2)})
    made = inventory(nn.ModuleDict({"layers": nn.ModuleList([wide])}))
    assert reasons(made) == {"router": ["layers.0.gate"]}


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ({"skip": ["*.down_proj"]}, {"mlp.gate_proj", "mlp.up_proj"}),
        ({"skip": ["*down_proj", "mlp.up_proj"]}, {"mlp.gate_proj"}),
        ({"only": ["mlp.*"]}, {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}),
        ({"only": ["mlp.*"], "skip": ["model.layers.*.mlp.up_proj"]}, {"mlp.gate_proj", "mlp.down_proj"}),
    ],
)
def test_skip_and_only_choose_layers(patterns, names):
    made = inventory(tiny_model("llama"), **patterns)
    for layers in made.layers:
        assert {layer.name for layer in layers if layer.name.startswith("mlp")} == names
    asked = reasons(made)["asked to be left out"]
    assert len(asked) == sum(7 - len(layers) for layers in made.layers)
    assert made.share < 1


def test_skip_and_only_take_block_numbers():
    made = inventory(tiny_model("llama"), only=["1.*"])
    assert [len(layers) for layers in made.layers] == [0, 7, 0]
    assert made.share == pytest.approx(1 / 3)


def test_experts_can_be_skipped():
    made = inventory(tiny_model("mixtral"), skip=["*.experts.0.*"])
    experts = {layer.expert for layers in made.layers for layer in layers}
    assert experts == {None, 1, 2, 3}


@pytest.mark.parametrize("option", ["skip", "only"])
def test_a_pattern_that_matches_nothing_is_refused(option):
    with pytest.raises(InputError, match=r"no layer matches 'mpl\.\*'; near names are mlp\.gate_proj, mlp\.up_proj"):
        inventory(tiny_model("llama"), **{option: ["*.q_proj", "mpl.*"]})


def test_state_and_convolutions_are_listed():
    made = inventory(tiny_model("jamba"))
    listed = {name.split("mamba.")[-1] for name in reasons(made)["recurrent or convolution state"]}
    assert listed == {"A_log", "conv1d"}


@pytest.mark.parametrize(("family", "classes"), [("jamba", 2), ("zamba2", 2), ("nemotron_h", 1), ("olmo_hybrid", 2)])
def test_blocks_may_be_of_several_classes(family, classes):
    made = inventory(tiny_model(family))
    assert len({type(block) for block in made.blocks}) == classes
    assert made.paths == [f"model.layers.{n}" for n in range(len(made.blocks))]
    assert made.share > 0.95


def test_layers_shared_by_blocks_are_listed_once():
    model = tiny_model("zamba2")
    made = inventory(model)
    parameters = [id(layer.parameter) for layers in made.layers for layer in layers]
    assert len(parameters) == len(set(parameters))
    first, second = (n for n, block in enumerate(made.blocks) if hasattr(block, "shared_transformer"))
    assert len(made.layers[first]) > len(made.layers[second]) > 0


def test_several_stacks_come_one_after_the_other():
    made = inventory(tiny_model("hrm_text"))
    assert made.paths == [f"model.{stack}.layers.{n}" for stack in ("L_module", "H_module") for n in range(2)]


TOWERS = {
    "git": "git.encoder.layer",
    "gemma3": "model.language_model.layers",
    "got_ocr2": "model.language_model.layers",
}


@pytest.mark.parametrize("family", TOWERS)
def test_towers_are_outside(family):
    made = inventory(tiny_model(family))
    assert made.paths == [f"{TOWERS[family]}.{n}" for n in range(len(made.blocks))]
    outside = reasons(made)["outside the text decoder"]
    assert outside
    assert all("vision" in name or "visual" in name or "multi_modal" in name or "image" in name for name in outside)
    assert made.share == 1


def test_the_published_git_is_not_taken_for_its_tower():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["git"]())
    assert decoder_blocks(model) is model.git.encoder.layer


@pytest.mark.parametrize("family", ["bart", "mllama"])
def test_cross_attention_is_listed_and_not_counted(family):
    made = inventory(tiny_model(family))
    assert all("attn" in name or ".1.mlp" in name for name in reasons(made)["cross-attention"])
    assert made.share == 1


def test_adapters_are_listed():
    model = tiny_model("llama")
    model.model.layers[0].mlp.up_proj.lora_A = nn.ModuleDict({"default": nn.Linear(32, 2)})
    assert reasons(inventory(model))["adapter"] == ["model.layers.0.mlp.up_proj.lora_A.default"]


def test_inventory_told_in_words_and_values():
    made = inventory(tiny_model("qwen2_moe"), skip=["0.*"])
    told = made.told()
    assert told["compressed"] / told["weights"] == made.share
    assert told["left_out"]["router"]["counted"]
    assert not told["left_out"]["embedding"]["counted"]
    assert made.sentence().startswith(
        f"{100 * made.share:.1f} % of the text decoder's {made.n_weights:,} weights are compr"
    )
    assert "asked to be left out (" in made.sentence()
    assert "embedding (1 matrix)" in made.sentence()


def test_a_model_without_blocks_is_refused():
    with pytest.raises(InputError, match="no list of decoder blocks"):
        inventory(nn.Sequential(nn.Linear(2, 2)))


def test_what_bridges_embeddings_and_blocks_counts_as_embedding():
    sizes = {"vocab_size": 32, "hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = AutoModelForCausalLM.from_config(OPTConfig(**sizes, word_embed_proj_dim=8, pad_token_id=0))
    made = inventory(model)
    bridges = {part.name: part.reason for part in made.left_out if "project_" in part.name}
    assert bridges == dict.fromkeys(("model.decoder.project_in", "model.decoder.project_out"), "embedding")
    assert made.share == 1
