"""Tiny random models, one of each family that the driver must take."""

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCAB = 128
_LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
FAMILIES = {
    "llama": _LLAMA,
    "mistral": _LLAMA | {"sliding_window": 8},
    "qwen2": _LLAMA,
    "qwen3": _LLAMA | {"head_dim": 8},
    "gemma3_text": _LLAMA
    | {"head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]},
    "gpt2": {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128},
    "opt": {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "word_embed_proj_dim": 16,
    },
    "gpt_neox": {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    },
}


def tiny_model(family: str, seed: int = 0):
    """A random float32 model of a family; the caller's random state is left as it was."""
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = CONFIG_MAPPING[family](**FAMILIES[family], **special)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    return model.eval().requires_grad_(False)


def random_windows(n_windows: int = 6, length: int = 24, seed: int = 0) -> torch.Tensor:
    """Token windows without special tokens."""
    return torch.randint(3, VOCAB, (n_windows, length), generator=torch.Generator().manual_seed(seed))


def tiny_tokenizer(vocab: int = VOCAB):
    """A byte-level tokenizer with as many entries as the tiny models have, and their special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = ["<unk>", "<s>", "</s>", *[c for c in alphabet if c.isalnum() or ord(c) > 127 or c in ".,"]][:vocab]
    tokenizer = Tokenizer(models.BPE({entry: i for i, entry in enumerate(entries)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def save_tiny(folder, family: str = "llama", **options) -> None:
    """A model folder as people have them: config, safetensors, tokenizer."""
    tiny_model(family).save_pretrained(folder, **options)
    tiny_tokenizer().save_pretrained(folder)
