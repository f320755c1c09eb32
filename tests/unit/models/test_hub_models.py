"""Hub ids of every family, offline, from a cache laid out as the hub lays it out; and what may be wrong with it."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from crosscal import compress, load_model
from crosscal.errors import InputError
from crosscal.models import decoder_blocks, find_config, find_folder, linear_layers, load_tokenizer
from crosscal.types import Unstructured
from tests.unit.families import FAMILIES, random_windows, save_tiny, tiny_tokenizer
from tests.unit.models.fake_hub import fill_cache

ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
TINY = FAMILIES["llama"]
HUB_MODELS = {
    "meta-llama/Llama-2-7b-hf": ("llama", TINY | {"num_key_value_heads": 4}),
    "meta-llama/Llama-3.1-8B": ("llama", TINY),
    "Qwen/Qwen2.5-0.5B": ("qwen2", TINY | {"tie_word_embeddings": True}),
    "Qwen/Qwen3-0.6B": ("qwen3", FAMILIES["qwen3"]),
    "mistralai/Mistral-7B-v0.3": ("mistral", FAMILIES["mistral"]),
    "microsoft/Phi-3-mini-4k-instruct": ("phi3", TINY),
    "google/gemma-2-2b": ("gemma2", TINY | {"head_dim": 16, "sliding_window": 8}),
    "google/gemma-3-270m": ("gemma3_text", FAMILIES["gemma3_text"]),
    "facebook/opt-125m": ("opt", FAMILIES["opt"]),
    "openai-community/gpt2": ("gpt2", FAMILIES["gpt2"]),
    "EleutherAI/pythia-70m": ("gpt_neox", FAMILIES["gpt_neox"]),
}


def save_as_published(folder, name):
    """A tiny random model of this hub model's architecture, in several shards."""
    kind, sizes = HUB_MODELS[name]
    config = CONFIG_MAPPING[kind](**sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size="20KB")
    tiny_tokenizer().save_pretrained(folder)
    if "Llama-3" in name:  # as the published file has it, from before transformers 5
        written = json.loads((folder / "config.json").read_text())
        written.pop("rope_parameters", None)
        (folder / "config.json").write_text(json.dumps(written | {"rope_scaling": ROPE, "rope_theta": 500000.0}))


@pytest.mark.parametrize("name", HUB_MODELS)
def test_each_family_loads_by_its_hub_id_and_is_compressed(hub_cache, tmp_path, name):
    save_as_published(tmp_path / "made", name)
    snapshot = fill_cache(hub_cache, name, tmp_path / "made")
    assert len(list(snapshot.glob("*.safetensors"))) > 1
    loaded = load_model(name, dtype="float32")
    assert loaded.name == name
    if "Llama-3" in name:
        assert loaded.model.config.rope_parameters["rope_type"] == "llama3"
    tokens, windows = random_windows(2, seed=1), random_windows()
    dense = loaded.model(tokens).logits
    for method in ("wanda", "sparsegpt"):
        model = copy.deepcopy(loaded.model)
        compress(model, method, Unstructured(0.5), calibration={"random": windows}, progress=False)
        layers = [layer.weight for block in decoder_blocks(model) for layer in linear_layers(block)]
        zeros = sum(int((weight == 0).sum()) for weight in layers) / sum(weight.numel() for weight in layers)
        assert zeros == pytest.approx(0.5, abs=0.02)
        logits = model(tokens).logits
        assert logits.isfinite().all()
        assert not torch.allclose(logits, dense)


def test_config_and_tokenizer_need_no_weights(hub_cache, tmp_path):
    save_tiny(tmp_path / "made")
    fill_cache(hub_cache, "me/model", tmp_path / "made", leave_out="model.safetensors")
    assert find_config("me/model").num_hidden_layers == 3
    assert load_tokenizer("me/model")("ab").input_ids == tiny_tokenizer()("ab").input_ids
    with pytest.raises(InputError, match=r"only in part \(model\.safetensors is missing\); unset HF_HUB_OFFLINE"):
        find_folder("me/model")


def test_a_shard_that_is_missing_from_cache_or_folder_is_named(hub_cache, tmp_path):
    save_tiny(tmp_path / "made", max_shard_size="20KB")
    second = sorted((tmp_path / "made").glob("*.safetensors"))[1]
    fill_cache(hub_cache, "me/model", tmp_path / "made", leave_out=second.name)
    with pytest.raises(InputError, match=rf"holds me/model only in part \({second.name} is missing\)"):
        load_model("me/model")
    second.unlink()
    with pytest.raises(InputError, match=rf"made lacks {second.name} \(1 of \d+ files missing\)"):
        load_model(tmp_path / "made")


def test_a_damaged_shard_is_named_with_the_command_that_fetches_it_again(hub_cache, tmp_path):
    save_tiny(tmp_path / "made", max_shard_size="20KB")
    second = sorted((tmp_path / "made").glob("*.safetensors"))[1]
    second.write_bytes(second.read_bytes()[:-8])
    fill_cache(hub_cache, "me/model", tmp_path / "made")
    with pytest.raises(InputError, match=rf"{second.name} of me/model is damaged.*hf download me/model {second.name}"):
        find_folder("me/model")


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}'])
def test_a_damaged_index_is_refused(tmp_path, text):
    save_tiny(tmp_path, max_shard_size="20KB")
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json is damaged"):
        find_folder(tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "newest"}, r"is of type 'newest', which transformers \S+ does not know; upgrade"),
        ({"model_type": "t5"}, "is of type 't5', which is no causal language model; give a decoder-only"),
        ({"model_type": None}, "is of type 'None'"),
        (
            {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "modeling_mine.Mine"}},
            "brings its own code; read it and, if you trust it, say so with trust_remote_code=True",
        ),
        ({"num_hidden_layers": "many"}, r"the config\.json of .* cannot be used"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused_before_any_weight_is_read(tmp_path, changes, sentence):
    save_tiny(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    for find in (find_folder, find_config, load_model):
        with pytest.raises(InputError, match=sentence):
            find(tmp_path)


@pytest.mark.parametrize("text", ["{", "3"])
def test_a_damaged_config_is_refused(tmp_path, text):
    save_tiny(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"the config\.json of .* is damaged"):
        find_config(tmp_path)


def test_a_folder_without_tokenizer_says_so(tmp_path):
    save_tiny(tmp_path)
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(InputError, match=r"no tokenizer can be loaded from .*; put its tokenizer files there"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("find", [find_folder, find_config, load_tokenizer, load_model])
def test_offline_a_model_that_is_nowhere_gets_a_sentence(hub_cache, find):
    with pytest.raises(InputError, match=r"7b-hf is neither asset, folder nor in the hub cache.*HF_HUB_OFFLINE"):
        find("meta-llama/Llama-2-7b-hf")


def test_what_cannot_be_a_hub_id_is_said_to_be_none(hub_cache):
    with pytest.raises(InputError, match="'me/no model' is neither asset, folder nor a hub id"):
        find_folder("me/no model")


def test_the_hubs_own_variables_are_honoured(tmp_path):
    save_tiny(tmp_path / "made")
    snapshot = fill_cache(tmp_path / "home" / "hub", "me/model", tmp_path / "made")
    code = "from crosscal.models import find_folder; print(find_folder('me/model'))"
    found = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    found |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=found)
    assert done.stdout.strip() == str(snapshot), done.stderr
