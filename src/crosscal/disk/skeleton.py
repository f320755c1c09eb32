"""A model without weights: parameters on the meta device, where they take no memory, and buffers as they should be."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from crosscal.disk.names import WholeModelError
from crosscal.errors import InputError
from crosscal.models.folders import attention_of, read_config


def open_skeleton(folder: Path, name: str, dtype: torch.dtype, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model that `load_model` would load from this folder in this dtype, with meta parameters.

    Raises `InputError` for a folder that holds no causal language model or a quantized one, and `WholeModelError` for
    one that keeps parameters in different dtypes or computes buffers in a way that cannot be repeated.
    """
    config = read_config(folder, name, trust_remote_code=trust_remote_code)
    if getattr(config, "quantization_config", None):
        raise InputError(f"{name} is quantized already; give the model that it was made from")
    options = {"attn_implementation": attention_of(config)}
    options |= {"trust_remote_code": True} if trust_remote_code else {}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, **options)
    if getattr(model, "_get_dtype_plan", lambda _: {})(dtype):
        raise WholeModelError("it keeps some of its weights in float32")
    _compute_buffers(model)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def _compute_buffers(model: PreTrainedModel) -> None:
    """Give buffers (rotary frequencies, masks, scales) their values, as transformers itself does after loading.

    Each is computed twice, from different contents: what then differs was not computed at all.
    """
    owners: dict[str, PreTrainedModel] = {}
    with torch.random.fork_rng(devices=[]):
        for path, module in model.named_modules():
            parent = owners.get(path.rpartition(".")[0], model)
            owners[path] = module if isinstance(module, PreTrainedModel) else parent
            names = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
            if not names:
                continue
            ones, zeros = (_computed(owners[path], module, names, fill) for fill in (1, 0))
            for name, one, zero in zip(names, ones, zeros, strict=True):
                stored = name not in module._non_persistent_buffers_set  # then the checkpoint has it
                if not stored and not torch.equal(one, zero):
                    raise WholeModelError(f"its buffer {path}.{name} is only computed when the whole model is loaded")


def _computed(owner: PreTrainedModel, module: nn.Module, names: list[str], fill: int) -> list[Tensor]:
    for name in names:
        empty = module.get_buffer(name)
        module._buffers[name] = torch.full(empty.shape, fill, dtype=empty.dtype, device="cpu")
    owner._init_weights(module)
    return [module.get_buffer(name) for name in names]
