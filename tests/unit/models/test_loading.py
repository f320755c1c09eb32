"""Loading the embedded model and folders, and what goes wrong; hub ids have tests of their own."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from crosscal import compress, load_model
from crosscal.errors import InputError
from crosscal.models import fast_dtype, find_config, find_folder, resolve_device, resolve_dtype
from crosscal.types import Unstructured
from tests.unit.families import FAMILIES, save_tiny, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_loads_with_equal_weights(tmp_path, family):
    save_tiny(tmp_path, family)
    loaded = load_model(tmp_path, dtype="float32")
    for mine, saved in zip(loaded.model.parameters(), tiny_model(family).parameters(), strict=True):
        assert torch.equal(mine, saved)
    model, tokenizer = loaded
    assert model is loaded.model
    assert tokenizer("ab").input_ids


def test_the_fingerprint_is_of_the_weights(tmp_path):
    save_tiny(tmp_path / "a")
    save_tiny(tmp_path / "b", max_shard_size="20KB")
    assert len(list((tmp_path / "b").glob("*.safetensors"))) > 1
    first = load_model(tmp_path / "a", dtype="float32").fingerprint
    assert first == load_model(tmp_path / "b", dtype="float32").fingerprint
    weights = load_file(tmp_path / "a" / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, tmp_path / "a" / "model.safetensors", {"format": "pt"})
    assert first != load_model(tmp_path / "a", dtype="float32").fingerprint


def test_nan_weights_are_named(tmp_path):
    save_tiny(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN"):
        load_model(tmp_path)


def test_a_folder_without_safetensors_is_refused(tmp_path):
    save_tiny(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="only safetensors and GGUF are read"):
        load_model(tmp_path)


def test_a_truncated_file_is_refused(tmp_path):
    save_tiny(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="is damaged or not a safetensors file"):
        load_model(tmp_path)


def test_a_missing_weight_is_named(tmp_path):
    save_tiny(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks weight model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(tmp_path)


def _float8(weight):
    scale = weight.abs().max() / 448
    return {"weight": (weight / scale).to(torch.float8_e4m3fn), "weight_scale_inv": scale.reshape(1, 1)}


QUANTIZED = {
    "float8 with scales": _float8,
    "int8 with scales": lambda w: {"weight": (w * 127).to(torch.int8), "weight_scale": w.abs().amax(1, keepdim=True)},
    "codes without scales": lambda w: {"weight": w.to(torch.float8_e4m3fn)},
    "GPTQ": lambda w: {"qweight": torch.zeros(4, 32, dtype=torch.int32), "qzeros": torch.zeros(1, 4)},
    "bitsandbytes": lambda w: {"weight": torch.zeros(512, 1, dtype=torch.uint8), "weight.absmax": torch.ones(16)},
}


@pytest.mark.parametrize("scheme", QUANTIZED)
def test_codes_that_the_config_does_not_admit(tmp_path, scheme):
    save_tiny(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    stem = "model.layers.0.self_attn.q_proj."
    parts = QUANTIZED[scheme](weights.pop(f"{stem}weight"))
    weights |= {stem + name: part for name, part in parts.items()}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    for load in (find_folder, load_model):
        with pytest.raises(
            InputError, match=r"holds quantized weights \(model\.layers\.0\.self_attn\.q_proj\.\S+\) without"
        ):
            load(tmp_path)


def test_compression_config_is_refused(tmp_path):
    save_tiny(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"compression_config": {"quant_method": "x"}}))
    with pytest.raises(InputError, match="is quantized already; give the dense model"):
        load_model(tmp_path)


def test_a_quantized_model_is_not_compressed():
    model = tiny_model("llama")
    model.config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(InputError, match="is quantized already; give the dense model"):
        compress(model, "magnitude", Unstructured(0.5), progress=False)


@pytest.mark.parametrize(
    ("alone", "sentence"), [(True, "holds an adapter, which is no"), (False, "a model and an adapter")]
)
def test_adapter_folders_are_refused(tmp_path, alone, sentence):
    save_tiny(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    if alone:
        (tmp_path / "config.json").unlink()
    for load in (find_config, find_folder, load_model):
        with pytest.raises(InputError, match=f"{sentence}.*merge it into the model"):
            load(tmp_path)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("smollm2-135", "did you mean 'smollm2-135m'"),
        ("./nowhere", r"no model at \./nowhere"),
        ("/nowhere/at/all", "no model at"),
        ("gemma3-270m", "accept_terms=True"),
    ],
)
def test_a_wrong_name_gets_a_sentence(name, sentence):
    with pytest.raises(InputError, match=sentence):
        load_model(name)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no config\.json"):
        load_model(tmp_path)


def test_unknown_devices_and_dtypes_get_a_sentence():
    with pytest.raises(InputError, match="device 'gpu9' is not available"):
        resolve_device("gpu9")
    with pytest.raises(InputError, match="did you mean 'float32'"):
        resolve_dtype("flaot32", torch.device("cpu"))


def test_the_dtype_is_the_hardwares_fast_one():
    assert fast_dtype("cpu") in (torch.float32, torch.bfloat16)
    assert resolve_dtype("auto", torch.device("cpu")) == fast_dtype("cpu")


@pytest.mark.slow
def test_the_embedded_model_loads_and_can_be_saved_again(tmp_path):
    loaded = load_model("smollm2-135m")
    assert loaded.model.config.num_hidden_layers == 30
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    assert load_model(tmp_path).fingerprint == loaded.fingerprint
