"""Which fields of config.json transformers reads. Written by tools/transformers_fields.py."""

VERSION = "5.23.0"

# fmt: off
READ_BY_ALL = frozenset({
    "adapter_kwargs", "adapter_name", "all_tied_weights_keys", "allow_all_kernels", "allow_is_causal_skip",
    "architectures", "attention_chunk_size", "attention_dropout", "attn_implementation", "base_model",
    "base_model_pp_plan", "base_model_tp_plan", "bos_token_id", "cache_dir", "chain_hidden_post_norm",
    "chunk_size_feed_forward", "classifier_dropout", "commit_message", "compile_config", "config",
    "create_compatible_mapping", "create_pr", "cumulative_length", "default_theta", "device", "device_map",
    "device_mesh", "disable_mmap", "disk_offload_folder", "distributed_config", "dtype", "embed_dim", "embeddings",
    "enable_gqa", "eos_token_id", "experts_implementation", "extra_files", "first_k_dense_replace", "force_download",
    "fusion_config", "generation_config", "get", "gguf_file", "gradient_checkpointing", "head_dim", "hf_device_map",
    "hf_quantizer", "hidden_act", "hidden_dropout", "hidden_size", "id2label", "ignore_mismatched_sizes", "init_std",
    "initializer_factor", "initializer_range", "is_causal", "is_encoder_decoder", "is_heterogeneous",
    "is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized", "json", "kernel_config", "key_mapping",
    "kv_sharing_modes", "label2id", "language_model", "layer_past", "layer_type", "layer_types", "lm_head",
    "local_files_only", "logits_mup_width_multiplier", "loss_type", "max_memory", "max_position_embeddings",
    "mlp_layer_types", "model", "model_type", "moe_intermediate_size", "mtp_hidden_states_first", "mtp_layer_types",
    "mtp_mlp_layer_types", "mtp_per_layer_config", "n_routed_experts", "name_or_path", "num_attention_heads",
    "num_heads", "num_hidden_layers", "num_key_value_heads", "num_labels", "num_mtp_layers", "number_of_conv_states",
    "number_of_states", "offload_buffers", "offload_folder", "original_max_position_embeddings", "output_attentions",
    "output_hidden_states", "output_loading_info", "pad_token_id", "partial_rotary_factor", "past_key_values",
    "per_layer_config", "pretrained_model_name_or_path", "problem_type", "proxies", "quant_method",
    "quantization_config", "quantization_method", "recursive", "repo_id", "return_dict", "return_unused_kwargs",
    "revision", "rms_norm_eps", "rope_parameters", "rope_scaling", "rope_theta", "sanitize_kernel_mapping",
    "sep_token_id", "sharded_metadata", "sliding_window", "smart_apply", "softcap", "state_dict", "sub_config_name",
    "sub_configs", "subfolder", "tags", "tie_word_embeddings", "token", "token_classification_bias", "torch_dtype",
    "tp_plan", "tp_size", "tqdm_class", "transformers_version", "transformers_weights", "trust_remote_code",
    "unpadded_vocab_size", "use_cache", "use_kernels", "variant", "vocab_size", "weight_mapping", "weights_only",
})
READ_BY: dict[str, frozenset[str]] = {
"apertus": frozenset({
    "attention_bias", "intermediate_size",
}),
"deepseek_v2": frozenset({
    "attention_bias", "intermediate_size", "kv_lora_rank", "mlp_bias", "n_group", "n_shared_experts", "norm_topk_prob",
    "num_experts", "num_experts_per_tok", "output_router_logits", "pretraining_tp", "q_lora_rank", "qk_nope_head_dim",
    "qk_rope_head_dim", "routed_scaling_factor", "topk_group", "topk_method", "v_head_dim",
}),
"deepseek_v3": frozenset({
    "attention_bias", "intermediate_size", "kv_lora_rank", "n_group", "n_shared_experts", "norm_topk_prob",
    "num_experts_per_tok", "num_local_experts", "num_nextn_predict_layers", "output_router_logits", "pretraining_tp",
    "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "rope_interleave", "routed_scaling_factor", "topk_group",
    "v_head_dim",
}),
"exaone4": frozenset({
    "intermediate_size", "sliding_window_pattern",
}),
"gemma": frozenset({
    "attention_bias", "intermediate_size", "use_bidirectional_attention",
}),
"gemma2": frozenset({
    "attention_bias", "attn_logit_softcapping", "final_logit_softcapping", "hidden_activation", "intermediate_size",
    "query_pre_attn_scalar", "use_bidirectional_attention",
}),
"gemma3_text": frozenset({
    "attention_bias", "attn_logit_softcapping", "final_logit_softcapping", "hidden_activation", "image_token_id",
    "intermediate_size", "mm_tokens_per_image", "or_mask_function", "query_pre_attn_scalar", "rope_local_base_freq",
    "sliding_window_pattern", "text_config", "token_type_ids", "use_bidirectional_attention", "vision_config",
}),
"glm4_moe": frozenset({
    "attention_bias", "intermediate_size", "n_group", "n_shared_experts", "norm_topk_prob", "num_experts_per_tok",
    "num_local_experts", "num_nextn_predict_layers", "output_router_logits", "routed_scaling_factor", "topk_group",
    "use_qk_norm",
}),
"gpt_neox": frozenset({
    "attention_bias", "intermediate_size", "is_decoder", "layer_norm_eps", "rotary_emb_base", "rotary_pct",
    "use_parallel_residual",
}),
"gpt_oss": frozenset({
    "attention_bias", "intermediate_size", "num_experts", "num_experts_per_tok", "num_local_experts",
    "output_router_logits", "router_aux_loss_coef", "swiglu_alpha", "swiglu_limit",
}),
"granite": frozenset({
    "attention_bias", "attention_multiplier", "embedding_multiplier", "intermediate_size", "logits_scaling", "mlp_bias",
    "residual_multiplier",
}),
"granitemoehybrid": frozenset({
    "attention_bias", "attention_multiplier", "embedding_multiplier", "intermediate_size", "layers_block_type",
    "logits_scaling", "mamba_chunk_size", "mamba_conv_bias", "mamba_d_conv", "mamba_d_head", "mamba_d_state",
    "mamba_expand", "mamba_n_groups", "mamba_n_heads", "mamba_proj_bias", "num_experts_per_tok", "num_local_experts",
    "output_router_logits", "position_embedding_type", "residual_multiplier", "router_aux_loss_coef",
    "shared_intermediate_size", "time_step_limit",
}),
"llama": frozenset({
    "attention_bias", "intermediate_size", "mlp_bias", "pretraining_tp",
}),
"llama4_text": frozenset({
    "attention_bias", "attn_scale", "attn_temperature_tuning", "floor_scale", "image_size", "image_token_id",
    "interleave_moe_layer_step", "intermediate_size", "intermediate_size_mlp", "moe_layers", "no_rope_layer_interval",
    "no_rope_layers", "num_channels", "num_experts_per_tok", "num_local_experts", "output_router_logits", "patch_size",
    "pixel_shuffle_ratio", "projector_dropout", "projector_input_dim", "projector_output_dim", "qk_norm",
    "router_aux_loss_coef", "router_jitter_noise", "text_config", "use_qk_norm", "vision_config",
}),
"ministral": frozenset({
    "intermediate_size",
}),
"ministral3": frozenset({
    "intermediate_size",
}),
"mistral": frozenset({
    "intermediate_size",
}),
"mixtral": frozenset({
    "intermediate_size", "num_experts", "num_experts_per_tok", "num_local_experts", "output_router_logits",
    "router_aux_loss_coef", "router_jitter_noise",
}),
"nemotron": frozenset({
    "attention_bias", "intermediate_size", "mlp_bias", "norm_eps",
}),
"olmo2": frozenset({
    "attention_bias", "intermediate_size",
}),
"olmo3": frozenset({
    "attention_bias", "intermediate_size",
}),
"olmoe": frozenset({
    "attention_bias", "clip_qkv", "intermediate_size", "norm_topk_prob", "num_experts", "num_experts_per_tok",
    "num_local_experts", "output_router_logits", "router_aux_loss_coef",
}),
"phi3": frozenset({
    "embd_pdrop", "intermediate_size", "next_sequence_length", "resid_pdrop",
}),
"qwen2": frozenset({
    "intermediate_size", "max_window_layers", "use_sliding_window",
}),
"qwen2_5_vl_text": frozenset({
    "depth", "fullatt_block_indexes", "image_grid_thw", "image_token_id", "in_channels", "input_ids",
    "intermediate_size", "max_window_layers", "mm_token_type_ids", "out_hidden_size", "patch_size",
    "spatial_merge_size", "temporal_patch_size", "text_config", "use_sliding_window", "video_grid_thw",
    "video_token_id", "vision_config", "window_size",
}),
"qwen2_moe": frozenset({
    "decoder_sparse_step", "intermediate_size", "max_window_layers", "mlp_only_layers", "norm_topk_prob", "num_experts",
    "num_experts_per_tok", "output_router_logits", "qkv_bias", "router_aux_loss_coef",
    "shared_expert_intermediate_size", "use_sliding_window",
}),
"qwen2_vl_text": frozenset({
    "depth", "image_grid_thw", "image_token_id", "in_channels", "input_ids", "intermediate_size", "max_window_layers",
    "mlp_ratio", "mm_token_type_ids", "patch_size", "spatial_merge_size", "temporal_patch_size", "text_config",
    "use_sliding_window", "video_grid_thw", "video_token_id", "vision_config",
}),
"qwen3": frozenset({
    "attention_bias", "intermediate_size", "max_window_layers", "use_sliding_window",
}),
"qwen3_5_moe_text": frozenset({
    "attention_bias", "cu_seq_lens_q", "depth", "full_attention_interval", "image_grid_thw", "image_token_id",
    "in_channels", "input_ids", "intermediate_size", "linear_conv_kernel_dim", "linear_key_head_dim",
    "linear_num_key_heads", "linear_num_value_heads", "linear_value_head_dim", "mm_token_type_ids", "num_experts",
    "num_experts_per_tok", "num_position_embeddings", "out_hidden_size", "output_router_logits", "patch_size",
    "router_aux_loss_coef", "shared_expert_intermediate_size", "spatial_merge_size", "temporal_patch_size",
    "text_config", "video_grid_thw", "video_token_id", "vision_config",
}),
"qwen3_5_text": frozenset({
    "attention_bias", "cu_seq_lens_q", "depth", "full_attention_interval", "image_grid_thw", "image_token_id",
    "in_channels", "input_ids", "intermediate_size", "linear_conv_kernel_dim", "linear_key_head_dim",
    "linear_num_key_heads", "linear_num_value_heads", "linear_value_head_dim", "mm_token_type_ids",
    "num_position_embeddings", "out_hidden_size", "patch_size", "spatial_merge_size", "temporal_patch_size",
    "text_config", "video_grid_thw", "video_token_id", "vision_config",
}),
"qwen3_moe": frozenset({
    "attention_bias", "decoder_sparse_step", "intermediate_size", "mlp_only_layers", "norm_topk_prob", "num_experts",
    "num_experts_per_tok", "num_local_experts", "output_router_logits", "router_aux_loss_coef", "use_sliding_window",
}),
"qwen3_next": frozenset({
    "attention_bias", "cu_seq_lens_q", "decoder_sparse_step", "full_attention_interval", "intermediate_size",
    "linear_conv_kernel_dim", "linear_key_head_dim", "linear_num_key_heads", "linear_num_value_heads",
    "linear_value_head_dim", "mlp_only_layers", "norm_topk_prob", "num_experts", "num_experts_per_tok",
    "output_router_logits", "router_aux_loss_coef", "shared_expert_intermediate_size",
}),
"qwen3_vl_moe_text": frozenset({
    "attention_bias", "decoder_sparse_step", "deepstack_visual_indexes", "depth", "image_grid_thw", "image_token_id",
    "in_channels", "input_ids", "intermediate_size", "mlp_only_layers", "mm_token_type_ids", "num_experts",
    "num_experts_per_tok", "num_local_experts", "num_position_embeddings", "out_hidden_size", "output_router_logits",
    "patch_size", "router_aux_loss_coef", "spatial_merge_size", "temporal_patch_size", "text_config", "video_grid_thw",
    "video_token_id", "vision_config",
}),
"qwen3_vl_text": frozenset({
    "attention_bias", "deepstack_visual_indexes", "depth", "image_grid_thw", "image_token_id", "in_channels",
    "input_ids", "intermediate_size", "mm_token_type_ids", "num_position_embeddings", "out_hidden_size", "patch_size",
    "spatial_merge_size", "temporal_patch_size", "text_config", "video_grid_thw", "video_token_id", "vision_config",
}),
"seed_oss": frozenset({
    "attention_bias", "attention_out_bias", "intermediate_size", "mlp_bias", "pretraining_tp", "residual_dropout",
}),
"smollm3": frozenset({
    "attention_bias", "intermediate_size", "mlp_bias", "no_rope_layer_interval", "no_rope_layers", "use_sliding_window",
}),
"starcoder2": frozenset({
    "embedding_dropout", "intermediate_size", "norm_epsilon", "residual_dropout", "use_bias",
}),
}
# fmt: on
