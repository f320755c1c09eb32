"""What is measured: a real model with real text, or one of random weights in the shape of a larger one."""

from dataclasses import dataclass

import torch

from crosscal import load_model, load_text

# Llama-2 7B's shape (Touvron et al. 2023, arXiv 2307.09288), and one of a seventh of its depth for a first try.
_LLAMA_2_7B = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
SHAPES = {
    "llama-2-7b-shape": _LLAMA_2_7B | {"num_hidden_layers": 32},
    "llama-2-1b-shape": _LLAMA_2_7B | {"num_hidden_layers": 4},
}


@dataclass
class Subject:
    """The model in its fast dtype and in float32, calibration windows, and held-out windows where text is real."""

    fast: torch.nn.Module
    plain: torch.nn.Module
    windows: torch.Tensor
    held_out: torch.Tensor | None


def subject(name: str, device: str, dtype: str, n_windows: int, length: int) -> Subject:
    """Load the model, or make one of random weights, and draw its windows."""
    if name in SHAPES:
        return _random(SHAPES[name], device, dtype, n_windows, length)
    place = None if device == "auto" else device
    fast = load_model(name, device=place, dtype=None if dtype == "auto" else dtype)
    plain = load_model(name, device=place, dtype="float32")
    windows = load_text("c4", fast.tokenizer, n_windows=n_windows, length=length).tokens
    held_out = load_text("wikipedia", fast.tokenizer, n_windows=4, length=1024, split="held_out").tokens
    return Subject(fast.model, plain.model, windows, held_out)


def _random(shape: dict, device: str, dtype: str, n_windows: int, length: int) -> Subject:
    from transformers import LlamaConfig, LlamaForCausalLM

    place = torch.device("cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu"))
    fast_dtype = getattr(torch, dtype) if dtype != "auto" else torch.bfloat16
    config = LlamaConfig(**shape, max_position_embeddings=length, attn_implementation="sdpa")
    torch.manual_seed(0)
    with place, torch.no_grad():
        plain = LlamaForCausalLM(config).to(torch.float32).eval().requires_grad_(False)
        fast = LlamaForCausalLM(config).to(fast_dtype).eval().requires_grad_(False)
        fast.load_state_dict(plain.state_dict())
    windows = torch.randint(3, config.vocab_size, (n_windows, length), generator=torch.Generator().manual_seed(0))
    return Subject(fast, plain, windows, None)
