"""Causal language models: loading, decoder blocks and their linear layers, head. All knowledge of model families."""

from crosscal.models.experts import experts_apart, forward_order
from crosscal.models.heads import check_length, final_hidden, head_logits
from crosscal.models.loading import (
    LoadedModel,
    fast_dtype,
    find_config,
    find_folder,
    load_model,
    load_tokenizer,
    model_fingerprint,
    resolve_device,
    resolve_dtype,
)
from crosscal.models.structure import Inventory, LinearLayer, decoder_blocks, inventory, linear_layers

__all__ = [
    "Inventory",
    "LinearLayer",
    "LoadedModel",
    "check_length",
    "decoder_blocks",
    "experts_apart",
    "fast_dtype",
    "final_hidden",
    "find_config",
    "find_folder",
    "forward_order",
    "head_logits",
    "inventory",
    "linear_layers",
    "load_model",
    "load_tokenizer",
    "model_fingerprint",
    "resolve_device",
    "resolve_dtype",
]
