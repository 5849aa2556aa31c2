"""config.json files for tests of families."""

from pathlib import Path
from typing import Any

import orjson

# Odd sizes: queries are grouped, heads are wider than hidden / heads, the vocabulary is odd.
SMALL: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# Short enough for the tests' sequences to meet all of it: short, long and blended wavelengths.
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 2.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
TIED = {"tie_word_embeddings": True}
NEOX: dict[str, Any] = {
    "model_type": "gpt_neox",
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "rotary_pct": 0.375,
    "rotary_emb_base": 5000,
}
MIXED_LAYERS = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
SMALL_BY_WIDTH = {name: value for name, value in SMALL.items() if name != "head_dim"}
UNGATED = {name: value for name, value in SMALL_BY_WIDTH.items() if name != "rms_norm_eps"}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.2, 1.4, 1.5],
    "long_factor": [1.0, 1.5, 2.5, 4.0, 6.0],
    "original_max_position_embeddings": 16,
}
QWEN3_MOE = SMALL | {
    "model_type": "qwen3_moe",
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 12,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
SIGLIP, PIXTRAL = VISION | {"model_type": "siglip_vision_model"}, VISION | {"model_type": "pixtral", "head_dim": 8}
QWEN_SEES = {"depth": 2, "hidden_size": 16, "intermediate_size": 24, "patch_size": 4, "spatial_merge_size": 2}
# A model of every family, and of every kind that differs in its mathematics or its weights.
MODELS: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "llama_tied": SMALL | TIED,
    "llama3_rope": SMALL | {"rope_parameters": LLAMA3_ROPE, "max_position_embeddings": 9000},
    "llama3_rope_short": SMALL
    | {
        "rope_parameters": LLAMA3_ROPE
        | {"factor": 4.0, "high_freq_factor": 3.0, "original_max_position_embeddings": 16}
    },
    "linear_rope": SMALL | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}},
    "qwen2_yarn": SMALL | {"model_type": "qwen2", "rope_parameters": YARN},
    # Windows shorter than the sequences of the tests.
    "mistral": SMALL | {"model_type": "mistral", "sliding_window": 7},
    "qwen2_window": SMALL
    | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2},
    "qwen3_window": SMALL
    | {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 12, "layer_types": MIXED_LAYERS},
    "mistral_tied": SMALL | TIED | {"model_type": "mistral", "sliding_window": None, "head_dim": 6},
    "qwen2": SMALL | {"model_type": "qwen2"},
    "qwen2_tied": SMALL_BY_WIDTH | TIED | {"model_type": "qwen2"},
    "qwen3": SMALL | {"model_type": "qwen3"},
    "qwen3_tied": SMALL | TIED | {"model_type": "qwen3", "head_dim": 12},
    "mixtral": SMALL | {"model_type": "mixtral", "num_local_experts": 3},
    "qwen3_moe": QWEN3_MOE,
    "qwen3_moe_mixed": QWEN3_MOE | TIED | {"mlp_only_layers": [0], "decoder_sparse_step": 2, "norm_topk_prob": True},
    # transformers gives the embedding of a padding token no gradient; its default is one of the few tokens here.
    "olmo2": SMALL_BY_WIDTH | {"model_type": "olmo2", "pad_token_id": None},
    "olmo2_tied": SMALL_BY_WIDTH | TIED | {"model_type": "olmo2", "num_key_value_heads": 4, "pad_token_id": None},
    # Scores and logits reach the caps; the window is shorter than the sequences of the tests.
    "gemma2": SMALL
    | {
        "model_type": "gemma2",
        "sliding_window": 7,
        "query_pre_attn_scalar": 12,
        "attn_logit_softcapping": 4.0,
        "final_logit_softcapping": 6.0,
        "pad_token_id": None,
    },
    "gemma2_tied": SMALL | TIED | {"model_type": "gemma2", "attn_logit_softcapping": None, "head_dim": 12},
    # A period of two in place of six, so that both stages of a pipeline have both kinds of layers.
    "gemma3": SMALL
    | {
        "model_type": "gemma3_text",
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "query_pre_attn_scalar": 96,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
        "final_logit_softcapping": 6.0,
        "pad_token_id": None,
    },
    "gemma3_tied": SMALL
    | TIED
    | {
        "model_type": "gemma3_text",
        "head_dim": 12,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 2,
        "pad_token_id": None,
    },
    "llama_biased": SMALL | {"attention_bias": True},
    # The tests' sequences are beyond the original positions.
    "dynamic_rope": SMALL | {"rope_scaling": {"type": "dynamic", "factor": 2.5}, "max_position_embeddings": 16},
    "llama_mlp_bias": SMALL | {"mlp_bias": True},
    "qwen3_biased": SMALL | {"model_type": "qwen3", "attention_bias": True},
    "ministral": SMALL | {"model_type": "ministral", "sliding_window": 7, "layer_types": MIXED_LAYERS},
    "phi3": SMALL | {"model_type": "phi3", "pad_token_id": None, "sliding_window": 7},
    # The tests' sequences are beyond the original positions, and a part of each head is turned.
    "phi3_long": SMALL_BY_WIDTH
    | TIED
    | {
        "model_type": "phi3",
        "pad_token_id": None,
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 16,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1, 1.4], "long_factor": [1.0, 1.5, 4.0]},
    },
    "llama_long_rope": SMALL | {"rope_parameters": LONG_ROPE},
    "smollm3": SMALL | {"model_type": "smollm3", "pad_token_id": None, "no_rope_layer_interval": 2},
    "smollm3_window": SMALL
    | TIED
    | {
        "model_type": "smollm3",
        "pad_token_id": None,
        "no_rope_layers": [1, 0, 0, 1],
        "use_sliding_window": True,
        "sliding_window": 7,
    },
    # The factor of YaRN is that of turned layers alone; layer_types holds whatever use_sliding_window says.
    "smollm3_yarn": SMALL
    | {
        "model_type": "smollm3",
        "pad_token_id": None,
        "no_rope_layer_interval": 2,
        "use_sliding_window": False,
        "sliding_window": 7,
        "layer_types": MIXED_LAYERS,
        "rope_parameters": YARN,
    },
    "seed_oss": SMALL | {"model_type": "seed_oss", "pad_token_id": None},
    "seed_oss_biased": SMALL
    | TIED
    | {"model_type": "seed_oss", "attention_out_bias": True, "mlp_bias": True, "pad_token_id": None},
    "qwen2_moe": SMALL
    | {
        "model_type": "qwen2_moe",
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 12,
        "shared_expert_intermediate_size": 20,
    },
    "olmoe": SMALL_BY_WIDTH | {"model_type": "olmoe", "num_experts": 6, "num_experts_per_tok": 3, "pad_token_id": None},
    # YaRN in two layers of four, and windows without it in the others.
    "olmo3": SMALL_BY_WIDTH
    | {
        "model_type": "olmo3",
        "pad_token_id": None,
        "sliding_window": 7,
        "layer_types": MIXED_LAYERS,
        "rope_parameters": {
            "full_attention": YARN,
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "olmo3_plain": SMALL_BY_WIDTH | TIED | {"model_type": "olmo3", "pad_token_id": None, "sliding_window": 12},
    # No positions in the layers that see the whole sequence.
    "exaone4": SMALL | {"model_type": "exaone4", "sliding_window": 7, "sliding_window_pattern": 2},
    "exaone4_whole": SMALL
    | TIED
    | {
        "model_type": "exaone4",
        "sliding_window": None,
        "layer_types": ["full_attention"] * 4,
        "rope_parameters": LLAMA3_ROPE,
        "max_position_embeddings": 9000,
    },
    "gemma": SMALL | {"model_type": "gemma", "pad_token_id": None},
    "gemma_tied": SMALL | TIED | {"model_type": "gemma", "hidden_act": "gelu", "head_dim": 12, "pad_token_id": None},
    "nemotron": UNGATED | {"model_type": "nemotron", "partial_rotary_factor": 0.5, "norm_eps": 1e-5},
    "nemotron_biased": UNGATED | TIED | {"model_type": "nemotron", "attention_bias": True, "mlp_bias": True},
    "starcoder2": UNGATED | {"model_type": "starcoder2", "sliding_window": 7},
    "starcoder2_tied": UNGATED | TIED | {"model_type": "starcoder2", "use_bias": False},
    "granite": SMALL_BY_WIDTH
    | {
        "model_type": "granite",
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.3,
        "logits_scaling": 0.25,
    },
    "granite_tied": SMALL_BY_WIDTH
    | TIED
    | {"model_type": "granite", "attention_bias": True, "mlp_bias": True, "attention_multiplier": 0.4},
    "granite4": SMALL_BY_WIDTH
    | {
        "model_type": "granitemoehybrid",
        "num_local_experts": 0,
        "shared_intermediate_size": 44,
        "layer_types": ["attention"] * 4,
        "position_embedding_type": "rope",
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.3,
        "logits_scaling": 0.25,
        "mamba_n_heads": 4,
    },
    "granite4_unturned": SMALL_BY_WIDTH
    | TIED
    | {
        "model_type": "granitemoehybrid",
        "num_local_experts": 0,
        "shared_intermediate_size": 44,
        "layer_types": ["attention"] * 4,
        "attention_multiplier": 0.4,
        "mamba_n_heads": 4,
    },
    # Of another width: there the sums that are the gradients of xIELU's numbers do not cancel each other.
    "apertus": SMALL | {"model_type": "apertus", "intermediate_size": 52, "pad_token_id": None},
    "apertus_tied": SMALL_BY_WIDTH
    | TIED
    | {"model_type": "apertus", "pad_token_id": None, "rope_parameters": YARN, "attention_bias": True},
    # The tests' sequences are beyond the original positions: all queries grow, more and more.
    "ministral3": SMALL
    | {
        "model_type": "ministral3",
        "pad_token_id": None,
        "rope_parameters": YARN | {"llama_4_scaling_beta": 0.3, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
    "ministral3_window": SMALL
    | TIED
    | {
        "model_type": "ministral3",
        "pad_token_id": None,
        "sliding_window": 7,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "llama_4_scaling_beta": 0.5,
            "original_max_position_embeddings": 5,
        },
    },
    # Models that read pictures too.
    "gemma3_vision": {
        "model_type": "gemma3",
        "text_config": SMALL
        | TIED
        | {
            "model_type": "gemma3_text",
            "sliding_window": 7,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "sliding_window_pattern": 2,
            "pad_token_id": None,
        },
        "vision_config": SIGLIP,
        "image_token_index": 99,
        "mm_tokens_per_image": 4,
    },
    "mistral3": {
        "model_type": "mistral3",
        "text_config": SMALL | {"model_type": "mistral", "sliding_window": None},
        "vision_config": PIXTRAL,
        "image_token_index": 10,
        "tie_word_embeddings": False,
    },
    "llava": {
        "model_type": "llava",
        "text_config": SMALL | {"model_type": "qwen2"},
        "vision_config": VISION | {"model_type": "clip_vision_model"},
        "image_token_index": 99,
    },
    # As published: the language model's fields beside the others.
    "qwen2_5_vl": SMALL_BY_WIDTH
    | {
        "model_type": "qwen2_5_vl",
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        "rope_theta": 1e4,
        "vision_config": QWEN_SEES | {"num_heads": 2, "fullatt_block_indexes": [1], "out_hidden_size": 32},
        "image_token_id": 96,
        "video_token_id": 95,
        "vision_start_token_id": 94,
        "vision_end_token_id": 93,
    },
    "qwen2_vl": {
        "model_type": "qwen2_vl",
        "text_config": SMALL_BY_WIDTH
        | TIED
        | {
            "model_type": "qwen2_vl_text",
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        },
        "tie_word_embeddings": True,
        "vision_config": QWEN_SEES | {"embed_dim": 16, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2},
        "image_token_id": 96,
        "video_token_id": 95,
    },
    "qwen3_vl": {
        "model_type": "qwen3_vl",
        "text_config": SMALL
        | {
            "model_type": "qwen3_vl_text",
            "head_dim": 12,
            "rope_scaling": {"rope_type": "default", "mrope_section": [2, 2, 2], "mrope_interleaved": True},
        },
        "vision_config": QWEN_SEES
        | {"num_heads": 2, "deepstack_visual_indexes": [0], "out_hidden_size": 32, "num_position_embeddings": 16},
        "image_token_id": 96,
        "video_token_id": 95,
        "tie_word_embeddings": False,
    },
    "mistral3_ministral3": {
        "model_type": "mistral3",
        "text_config": SMALL
        | {
            "model_type": "ministral3",
            "pad_token_id": None,
            "rope_parameters": YARN | {"llama_4_scaling_beta": 0.3, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
        "vision_config": PIXTRAL,
        "image_token_index": 10,
        "tie_word_embeddings": False,
    },
    "gpt_neox_yarn": NEOX | {"rope_parameters": YARN | {"partial_rotary_factor": 0.375}},
    "gpt_neox": NEOX,
    "gpt_neox_serial": NEOX | TIED | {"use_parallel_residual": False, "hidden_act": "gelu_fast", "rotary_pct": 1.0},
}

GLM4_MOE = SMALL | {
    "model_type": "glm4_moe",
    "pad_token_id": None,
    "head_dim": 12,
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 12,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 1,
}
LATENT = SMALL_BY_WIDTH | {
    "num_key_value_heads": 4,
    "pad_token_id": None,
    "kv_lora_rank": 14,
    "q_lora_rank": None,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 8,
    "n_routed_experts": 6,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 12,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
}
LATENT_YARN = YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}
MODELS |= {
    "deepseek_v2": LATENT | {"model_type": "deepseek_v2", "rope_parameters": LATENT_YARN},
    "deepseek_v2_tied": LATENT | TIED | {"model_type": "deepseek_v2", "q_lora_rank": 18, "n_shared_experts": 1},
    "deepseek_v3": LATENT
    | {
        "model_type": "deepseek_v3",
        "q_lora_rank": 18,
        "n_group": 3,
        "topk_group": 2,
        "rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5},
    },
    "deepseek_v3_tied": LATENT | TIED | {"model_type": "deepseek_v3", "n_group": 1, "topk_group": 1},
    # As GLM-4.5, and as GLM-4.5-Air.
    "glm4_moe": GLM4_MOE | {"use_qk_norm": True, "attention_bias": True},
    "glm4_moe_groups": GLM4_MOE
    | TIED
    | {
        "attention_bias": True,
        "n_group": 3,
        "topk_group": 2,
        "num_experts_per_tok": 4,
        "n_shared_experts": 2,
        "first_k_dense_replace": 2,
    },
}

GPT_OSS = SMALL | {
    "model_type": "gpt_oss",
    "pad_token_id": None,
    "intermediate_size": 12,
    "num_local_experts": 6,
    "num_experts_per_tok": 3,
    "sliding_window": 7,
    # What the gate and the other half of the experts reach in the tests.
    "swiglu_limit": 0.4,
    "rope_parameters": YARN | {"truncate": False},
}
MODELS |= {
    "gpt_oss": GPT_OSS,
    # Windows in other layers, and no biases but those of experts and routers.
    "gpt_oss_tied": GPT_OSS
    | TIED
    | {
        "attention_bias": False,
        "layer_types": MIXED_LAYERS,
        "swiglu_limit": 7.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
}

# Two value heads for each key head of a delta net; values are narrower than keys. What a head of random weights gives
# is now and then near 0 at all of its few dimensions, and its norm would make rounding of that large: with 1e-5 added,
# transformers' logits in fp32 are 5e-5 from those in fp64.
QWEN3_NEXT = SMALL | {
    "model_type": "qwen3_next",
    "pad_token_id": None,
    "rms_norm_eps": 1e-3,
    "partial_rotary_factor": 0.4,
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 20,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 10,
    "linear_value_head_dim": 6,
    # In place of one in four, so that both stages of a pipeline have both kinds of layers.
    "full_attention_interval": 2,
}
MODELS |= {
    "qwen3_next": QWEN3_NEXT,
    # Attention in the last layer alone, as in published ones, so that a stage has none; layers without experts.
    "qwen3_next_tied": QWEN3_NEXT
    | TIED
    | {
        "full_attention_interval": 4,
        "mlp_only_layers": [1],
        "linear_num_key_heads": 4,
        "linear_conv_kernel_dim": 3,
        "norm_topk_prob": False,
        "attention_bias": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.6},
    },
}

NOT_OF_QWEN3_5 = ("num_experts", "moe_", "shared_expert", "partial_rotary")
QWEN3_5 = {name: value for name, value in QWEN3_NEXT.items() if not name.startswith(NOT_OF_QWEN3_5)} | {
    "model_type": "qwen3_5_text",
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e6,
        "partial_rotary_factor": 0.4,
        "mrope_section": [1, 1, 0],
        "mrope_interleaved": True,
    },
}
MODELS |= {
    "qwen3_5_text": QWEN3_5 | TIED | {"full_attention_interval": 4},
    "qwen3_5": {
        "model_type": "qwen3_5",
        "text_config": QWEN3_5,
        "vision_config": QWEN_SEES | {"num_heads": 2, "out_hidden_size": 32, "num_position_embeddings": 16},
        "image_token_id": 96,
        "video_token_id": 95,
        "tie_word_embeddings": False,
    },
}

# With 1e-3 our logits are up to 1.2e-5 from transformers', where those are up to 7e-6 from themselves in fp64.
NOT_OF_QWEN3_5_MOE = ("intermediate_size", "partial_rotary_factor")
QWEN3_5_MOE = {name: value for name, value in QWEN3_NEXT.items() if name not in NOT_OF_QWEN3_5_MOE} | {
    "model_type": "qwen3_5_moe_text",
    "rms_norm_eps": 5e-2,
    "rope_parameters": QWEN3_5["rope_parameters"],
}
MODELS |= {
    # Each expert by itself, as transformers saves it; the next as published.
    "qwen3_5_moe_text": QWEN3_5_MOE | TIED | {"full_attention_interval": 4},
    "qwen3_5_moe": MODELS["qwen3_5"] | {"model_type": "qwen3_5_moe", "text_config": QWEN3_5_MOE},
    "qwen3_vl_moe": MODELS["qwen3_vl"]
    | {
        "model_type": "qwen3_vl_moe",
        "text_config": MODELS["qwen3_vl"]["text_config"]
        | {
            "model_type": "qwen3_vl_moe_text",
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 12,
            "mlp_only_layers": [1],
        },
    },
}

LLAMA4_SEES = VISION | {
    "model_type": "llama4_vision_model",
    "vision_output_dim": 12,
    "projector_input_dim": 12,
    "projector_output_dim": 12,
}
# Chunks and the growth of queries begin within the tests' sequences; no positions in every second layer, so that both
# stages of a pipeline have both kinds.
LLAMA4 = SMALL | {
    "model_type": "llama4_text",
    "pad_token_id": None,
    "intermediate_size": 12,
    "intermediate_size_mlp": 44,
    "num_local_experts": 4,
    "attention_chunk_size": 7,
    "no_rope_layer_interval": 2,
    "floor_scale": 5,
    "attn_scale": 0.3,
}
MODELS |= {
    # As Scout: the scaling of its positions has no blended wavelengths.
    "llama4": {
        "model_type": "llama4",
        "text_config": LLAMA4
        | {
            "no_rope_layers": [],
            "rope_scaling": LLAMA3_ROPE
            | {"factor": 16.0, "high_freq_factor": 1.0, "original_max_position_embeddings": 16},
        },
        "vision_config": LLAMA4_SEES,
        "image_token_index": 99,
        "boi_token_index": 98,
        "eoi_token_index": 97,
        "tie_word_embeddings": False,
    },
    # Layers with chunks and those without positions are others than those that imply each other.
    "llama4_text": LLAMA4
    | TIED
    | {
        "interleave_moe_layer_step": 2,
        "no_rope_layers": [1, 0, 1, 0],
        "layer_types": ["chunked_attention", "chunked_attention", "full_attention", "full_attention"],
    },
    "llama4_dense": LLAMA4
    | {
        "attention_bias": True,
        "moe_layers": [],
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "interleave_moe_layer_step": 0,
        "no_rope_layers": [1] * 4,
        "attn_temperature_tuning": False,
        "rope_parameters": YARN | {"attention_factor": 1.0},
    },
}
MODELS["llama4_interleaved"] = MODELS["llama4"] | {
    "text_config": LLAMA4 | {"interleave_moe_layer_step": 2, "use_qk_norm": False, "rope_theta": 5e5}
}

# What others do not show under several ranks: one kind of each family, and each way to divide or to turn.
DIVIDED = (
    *("llama", "llama_tied", "llama3_rope_short", "llama_biased", "mistral", "ministral", "qwen2_window", "qwen3"),
    *("phi3", "phi3_long", "smollm3", "seed_oss", "gpt_neox", "gpt_neox_serial", "nemotron", "starcoder2"),
    *(
        "mixtral",
        "qwen2_moe",
        "qwen3_moe_mixed",
        "qwen3_next",
        "qwen3_next_tied",
        "qwen3_5",
        "qwen3_5_moe",
        "qwen3_vl_moe",
        "olmoe",
        "glm4_moe",
        "deepseek_v2",
        "deepseek_v3",
        "llama4",
        "gpt_oss",
        "olmo2",
        "olmo3",
        "exaone4",
        "gemma",
        "gemma2",
        "gemma3_tied",
        "gemma3_vision",
        "mistral3",
        "qwen2_5_vl",
        "qwen3_vl",
        "granite",
        "granite4",
        "apertus",
        "ministral3",
    ),
)


def write_config(folder: Path, **changes: Any) -> Path:
    """A folder whose config.json is the small Llama's with changes; None removes a field."""
    return write_fields(folder, {name: value for name, value in (SMALL | changes).items() if value is not None})


def text_of(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of the language model: of `text_config` where it is a part of another model."""
    return fields.get("text_config", fields)


def of_sizes(fields: dict[str, Any], sizes: dict[str, Any]) -> dict[str, Any]:
    """The fields of a model with other sizes; without the sections of a head, which are those of its width."""
    found = {name: value if value is None else sizes.get(name, value) for name, value in fields.items()}
    if isinstance(rope := found.get("rope_parameters"), dict):
        found["rope_parameters"] = {name: value for name, value in rope.items() if name != "mrope_section"}
    return found


def with_vocabulary(fields: dict[str, Any], rows: int) -> dict[str, Any]:
    """The fields of a model with so many rows."""
    text = text_of(fields) | {"vocab_size": rows}
    return fields | ({"text_config": text} if "text_config" in fields else text)


def write_fields(folder: Path, fields: dict[str, Any]) -> Path:
    """A folder whose config.json holds these fields."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_bytes(orjson.dumps(fields))
    return folder
