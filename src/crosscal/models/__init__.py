"""Causal language models: loading, decoder blocks and their linear layers, head. All knowledge of model families."""

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
from crosscal.models.structure import LinearLayer, decoder_blocks, linear_layers

__all__ = [
    "LinearLayer",
    "LoadedModel",
    "check_length",
    "decoder_blocks",
    "fast_dtype",
    "final_hidden",
    "find_config",
    "find_folder",
    "head_logits",
    "linear_layers",
    "load_model",
    "load_tokenizer",
    "model_fingerprint",
    "resolve_device",
    "resolve_dtype",
]
