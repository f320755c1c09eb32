"""Tiny random models: `FAMILIES` are those that most tests run over; `SIZES` and its exceptions build the others."""

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
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
}
"""Sizes that most decoder types of transformers take."""
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_TEXT = {name: SIZES[name] for name in list(SIZES)[:9] if name != "moe_intermediate_size"} | _SPECIAL
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
_LATENT |= {"num_key_value_heads": 4, "head_dim": 8}
_ONE_DENSE = _LATENT | {"first_k_dense_replace": 1}
_SPARSE = _ONE_DENSE | {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 8}
_SEQUENCE = {"d_model": 64, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4}
_SEQUENCE |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}
_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
_DELTA |= {"layer_types": ["linear_attention", "full_attention"], "shared_expert_intermediate_size": 48}
_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
_VISION |= {"image_size": 32, "patch_size": 8}
_TOWER = {"hidden_size": 32, "intermediate_size": 48, "depth": 1, "num_heads": 4, "out_hidden_size": 64}
_PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB}
_CHUNKED = {"intermediate_size_mlp": 96, "interleave_moe_layer_step": 1, "attention_chunk_size": 64}
_SHARED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_AUDIO = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
_BYTES = {"vocab_size": 260, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
_BYTES |= {"max_position_embeddings": 256}
_LOCAL = _BYTES | {"hidden_size_global": 64, "cross_attn_k": 2}
_HYBRID = ["linear_attention", "hybrid"] * 2

EXCEPTIONS = {
    "axk1": _ONE_DENSE,
    "axk2": _SPARSE,
    "bamba": _MAMBA | {"attn_layer_indices": [1]},
    "bart": _SEQUENCE,
    "big_bird": {"attention_type": "original_full"},
    "bigbird_pegasus": _SEQUENCE | {"attention_type": "original_full"},
    "blenderbot": _SEQUENCE,
    "blenderbot-small": _SEQUENCE,
    "codegen": {"rotary_dim": 8},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
    | {"rope_parameters": dict.fromkeys(("sliding_attention", "full_attention"), _ROPE)},
    "cpmant": {"dim_head": 16, "dim_ff": 96},
    "deepseek_v2": _ONE_DENSE,
    "deepseek_v3": _ONE_DENSE,
    "deepseek_v32": _SPARSE,
    "dots1": {"first_k_dense_replace": 1, "n_shared_experts": 1},
    "dots3_note_text": _SPARSE,
    "electra": {"embedding_size": 64},
    "falcon_h1": _MAMBA | {"mamba_d_ssm": 128},
    "falcon_mamba": {"state_size": 4},
    "gemma3n_text": _PER_LAYER
    | {"num_hidden_layers": 6, "num_kv_shared_layers": 2, "laurel_rank": 8, "altup_num_inputs": 2, "sliding_window": 16}
    | {"layer_types": ["sliding_attention"] * 3 + ["full_attention"] + ["sliding_attention", "full_attention"]}
    | {"intermediate_size": [192] * 6, "activation_sparsity_pattern": [0.0] * 6},
    "gemma4_text": _PER_LAYER,
    "glm4_moe": {"first_k_dense_replace": 1},
    "glm4_moe_lite": _ONE_DENSE,
    "glm_moe_dsa": _SPARSE,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "window_size": 16},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": _MAMBA | {"layer_types": ["linear_attention", "full_attention"]},
    "hy_v4": _SPARSE | {"o_lora_rank": 16, "hc_mult": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
    | {"mamba_d_state": 4, "mamba_dt_rank": 8, "use_mamba_kernels": False},
    "kimi_linear": _LATENT
    | {"linear_attn_config": {"num_heads": 4, "head_dim": 16, "short_conv_kernel_size": 4}}
    | {"layer_types": ["linear_attention", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1, "use_expert_bias": True},
    "llama4_text": _CHUNKED | {"num_experts_per_tok": 1},
    "longcat_flash": _LATENT
    | {"expert_ffn_hidden_size": 48, "ffn_hidden_size": 96, "zero_expert_num": 2, "moe_topk": 2},
    "mamba": {"state_size": 4},
    "mamba2": {"num_heads": 4, "head_dim": 32, "state_size": 8, "n_groups": 1, "chunk_size": 16},
    "marian": _SEQUENCE,
    "mbart": _SEQUENCE,
    "minicpm3": _LATENT,
    "moshi": {"ffn_dim": 96},
    "mvp": _SEQUENCE,
    "nemotron_h": {"hybrid_override_pattern": "M*-E", "mamba_num_heads": 4, "mamba_head_dim": 32, "ssm_state_size": 8}
    | {"n_groups": 1, "chunk_size": 16, "moe_shared_expert_intermediate_size": 48},
    "pegasus": _SEQUENCE,
    "plbart": _SEQUENCE,
    "qwen3_5_moe_text": _DELTA,
    "qwen3_5_text": _DELTA,
    "qwen3_next": _DELTA,
    "qwen4_exp_text": _DELTA
    | {"hc_lowrank": 8, "hc_count": 2, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16}
    | {"indexer_budget": 8, "indexer_compress_ratio": 1},
    "rembert": {"input_embedding_size": 16},
    "roc_bert": {"pronunciation_embed_dim": 64, "shape_embed_dim": 64, "concat_input": False},
    "trocr": _SEQUENCE,
    "whisper": _SEQUENCE | {"max_target_positions": 256},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "youtu": _LATENT,
    "zamba": {"hidden_size": 256, "num_hidden_layers": 4, "layers_block_type": _HYBRID, "attention_hidden_size": 512}
    | {"attention_head_dim": 128, "n_mamba_heads": 2, "mamba_d_state": 4, "mamba_dt_rank": 4, "num_key_value_heads": 4}
    | {"use_mamba_kernels": False},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": _HYBRID, "attention_head_dim": 32, "num_mem_blocks": 1}
    | {"mamba_d_state": 8, "n_mamba_heads": 8, "mamba_ngroups": 1, "adapter_rank": 8, "chunk_size": 16}
    | {"use_shared_attention_adapter": True, "use_mamba_kernels": False, "num_key_value_heads": 4},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 8, "num_experts": 8},
}
"""What a decoder type needs beside `SIZES`."""
OWN_SIZES = FAMILIES | {
    "blt": {"vocab_size": 260, "max_position_embeddings": 256, "encoder_hash_byte_group_vocab": 32, "cross_attn_k": 2}
    | {"patcher_config": _BYTES | {"num_hidden_layers": 1}, "encoder_config": _LOCAL | {"num_hidden_layers": 1}}
    | {"decoder_config": _LOCAL | {"num_hidden_layers": 2}, "global_config": {key: _TEXT[key] for key in _SHARED}},
    "dbrx": {"vocab_size": VOCAB, "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}
    | {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}}
    | {"ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2}},
    "emu3": {"text_config": _TEXT}
    | {
        "vq_config": {"codebook_size": 32, "embed_dim": 4, "base_channels": 32, "channel_multiplier": [1]}
        | {"num_res_blocks": 1, "attn_resolutions": [], "hidden_size": 32, "z_channels": 4}
    },
    "falcon": {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gemma3": {"text_config": _TEXT | {"sliding_window": 16}, "vision_config": _VISION, "mm_tokens_per_image": 4},
    "gemma4": {"text_config": _TEXT | _PER_LAYER, "audio_config": None}
    | {"vision_config": _VISION | {"num_key_value_heads": 4, "head_dim": 8}},
    "gemma4_unified": {"text_config": _TEXT},
    "git": {name: size for name, size in _TEXT.items() if name not in ("head_dim", "num_key_value_heads")}
    | {"vision_config": _VISION},
    "got_ocr2": {"text_config": _TEXT | {"model_type": "qwen2"}}
    | {"vision_config": _VISION | {"mlp_dim": 48, "output_channels": 8, "num_pos_feats": 4, "global_attn_indexes": []}},
    "llama4": {"text_config": SIZES | _SPECIAL | _CHUNKED | {"num_experts_per_tok": 1}, "vision_config": _VISION},
    "mllama": {"text_config": _TEXT | {"cross_attention_layers": [1], "num_hidden_layers": 3}}
    | {
        "vision_config": _VISION
        | {"num_global_layers": 1, "supported_aspect_ratios": [[1, 1]], "attention_heads": 4}
        | {"intermediate_layers_indices": [0]}
    },
    "moss_transcribe_diarize": {"text_config": _TEXT | {"model_type": "qwen3"}, "audio_token_id": 5}
    | {"audio_config": _AUDIO | {"num_hidden_layers": 1, "num_mel_bins": 16, "max_source_positions": 32}},
    "phi4_multimodal": _TEXT
    | {"vision_config": _VISION | {"num_hidden_layers": 2, "crop_size": 32, "image_token_id": 10}}
    | {
        "audio_config": _AUDIO
        | {"num_blocks": 2, "input_size": 16, "ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32}
        | {"nemo_conv_channels": 8, "nemo_final_size": 2, "audio_token_id": 11}
    },
    "prophetnet": {"vocab_size": VOCAB, "hidden_size": 64, "encoder_ffn_dim": 96, "num_encoder_layers": 1}
    | {"num_encoder_attention_heads": 4, "decoder_ffn_dim": 96, "num_decoder_layers": 2}
    | {"num_decoder_attention_heads": 4, "max_position_embeddings": 256, "is_decoder": True}
    | {"add_cross_attention": False},
    "qwen3_5": {"text_config": _TEXT | _DELTA, "vision_config": _TOWER},
    "qwen3_5_moe": {"text_config": SIZES | _SPECIAL | _DELTA, "vision_config": _TOWER},
    "reformer": {"vocab_size": VOCAB, "is_decoder": True, "hidden_size": 64, "feed_forward_size": 96}
    | {"num_attention_heads": 4, "attention_head_size": 16, "attn_layers": ["local", "local"], "axial_pos_embds": False}
    | {"max_position_embeddings": 256, "local_attn_chunk_length": 16},
    "xlnet": {"vocab_size": VOCAB, "d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 96},
}
"""Sizes of decoder types that take other names, or that the tests want smaller."""


def tiny_config(family: str):
    """The configuration of a tiny model of any decoder type."""
    sizes = OWN_SIZES[family] if family in OWN_SIZES else SIZES | EXCEPTIONS.get(family, {})
    return CONFIG_MAPPING[family](**sizes | _SPECIAL)


def tiny_model(family: str, seed: int = 0):
    """A random float32 model of a family; the caller's random state is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(family))
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
