"""What sets the families apart from Llama: defaults, windows, and what each cannot honour."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.schema import RopeSettings
from megatron_cpt.families.multimodal import MULTIMODAL, text_fields
from megatron_cpt.families.shape import FAMILIES, read_config, read_shape
from tests.families.folders import DYNAMIC, LLAMA4, LONG_ROPE, MODELS, NEOX, SMALL, YARN, write_fields
from tests.families.folders import LLAMA3_ROPE as LLAMA3

FULL, SLIDING = "full_attention", "sliding_attention"
HEAD_DIMS = {
    "qwen3_vl_text": 128,
    "deepseek_v2": 192,
    "deepseek_v3": 192,
    "gpt_oss": 64,
    "ministral3": 128,
    "qwen3": 128,
    "qwen3_next": 256,
    "qwen3_5_text": 256,
    "qwen3_5_moe_text": 256,
    "seed_oss": 128,
    "gemma": 256,
    "gemma2": 256,
    "gemma3_text": 256,
    "llama4_text": 128,
}
LATENT = {"num_key_value_heads": 32, "first_k_dense_replace": 1, "num_experts_per_tok": 8}
SECTIONED = ("qwen2_vl_text", "qwen2_5_vl_text")
DENSE = {"num_local_experts": 0, "layer_types": ["attention"] * 3}
EPSILONS = {"gpt_neox": "layer_norm_eps", "nemotron": "norm_eps", "starcoder2": "norm_epsilon"}


def test_every_family_has_a_model_in_the_tests() -> None:
    found = {given["model_type"] for fields in MODELS.values() for given in (fields, text_fields(fields))}
    assert found == {*FAMILIES, *MULTIMODAL}


def without(fields: dict[str, Any], name: str) -> dict[str, Any]:
    return {each: value for each, value in fields.items() if each != name}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_config_that_transformers_writes_is_understood(tmp_path: Path, family: str) -> None:
    sizes = {"num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"head_dim": 16} if family == "ministral" else DENSE if family == "granitemoehybrid" else {}
    grouped = family not in ("gpt_neox", "deepseek_v2", "deepseek_v3")
    fields = {name: size for name, size in sizes.items() if grouped or name != "num_key_value_heads"}
    if family.startswith("deepseek"):
        fields |= LATENT | {"num_key_value_heads": 4}
    if family in SECTIONED:
        fields |= {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}}
    config = AutoConfig.for_model(family, **fields)
    config.save_pretrained(tmp_path)
    shape = read_shape(tmp_path)
    assert (shape.family, shape.layers, shape.hidden, shape.heads) == (family, 3, 64, 4)
    assert shape.query_groups == (2 if grouped else 4)
    assert shape.vocabulary == config.vocab_size
    assert shape.max_positions == config.max_position_embeddings
    assert shape.head_dim == HEAD_DIMS.get(family, 16)
    if family == "mistral":
        assert (shape.local_window, shape.local_layers) == (4096, {0, 1, 2})
    rope = config.rope_parameters
    assert shape.rope_base == rope.get(FULL, rope)["rope_theta"]
    # An OLMo 3 has another base only where that of the other layers is scaled.
    assert shape.local_rope_base == (rope[SLIDING]["rope_theta"] if family == "gemma3_text" else None)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_what_is_not_written_is_what_transformers_takes(tmp_path: Path, family: str) -> None:
    needed = {"num_hidden_layers": 3, "hidden_size": 256, "num_attention_heads": 32}
    needed |= {"head_dim": 8} if family == "ministral" else DENSE if family == "granitemoehybrid" else {}
    needed |= LATENT if family.startswith("deepseek") else {}
    needed |= {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}} if family in SECTIONED else {}
    shape = read_shape(
        write_fields(tmp_path, {"model_type": family, "vocab_size": 7, "intermediate_size": 8, **needed})
    )
    config = AutoConfig.for_model(family, **needed)
    assert shape.query_groups == (getattr(config, "num_key_value_heads", None) or 32)
    assert shape.head_dim == getattr(config, "qk_head_dim", getattr(config, "head_dim", None) or 8)
    assert shape.max_positions == config.max_position_embeddings
    assert shape.norm_epsilon == getattr(config, EPSILONS.get(family, "rms_norm_eps"))
    assert shape.local_window == (getattr(config, "sliding_window", None) or None)
    if (kinds := getattr(config, "layer_types", None)) and shape.local_window:
        assert shape.local_layers == {layer for layer, kind in enumerate(kinds) if kind == SLIDING}
    assert shape.rotary_share == config.rope_parameters.get("partial_rotary_factor", 1.0)
    assert shape.tied_embeddings == getattr(config, "tie_word_embeddings", False)  # some state it outside


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({"sliding_window": 16}, set()),
        ({"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 4}, set()),
        ({"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 3}, {3}),
        ({"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}, {0, 1, 2, 3}),
        ({"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}, set()),
        ({"use_sliding_window": True, "sliding_window": 16, "layer_types": [FULL] * 4}, set()),
        ({"use_sliding_window": True, "sliding_window": 16, "layer_types": [FULL, SLIDING] * 2}, {1, 3}),
    ],
)
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_the_window_of_a_qwen(tmp_path: Path, family: str, changes: dict[str, Any], layers: set[int]) -> None:
    shape = read_shape(write_fields(tmp_path, SMALL | {"model_type": family} | changes))
    assert (shape.local_window, shape.local_layers) == (16 if layers else None, layers)
    assert shape.max_positions == 64


def test_both_forms_of_the_rotary_fields_of_a_pythia(tmp_path: Path) -> None:
    older = read_shape(write_fields(tmp_path, NEOX))
    assert (older.rope_base, older.rotary_share) == (5000.0, 0.375)
    newer = {name: value for name, value in NEOX.items() if not name.startswith("rotary")}
    newer["rope_parameters"] = {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.375}
    assert read_shape(write_fields(tmp_path, newer)) == older


GEMMA3 = SMALL | {"model_type": "gemma3_text", "num_hidden_layers": 8}


def test_five_layers_of_six_of_a_gemma_3_are_local(tmp_path: Path) -> None:
    assert read_shape(write_fields(tmp_path, GEMMA3)).local_layers == {0, 1, 2, 3, 4, 6, 7}
    assert read_shape(write_fields(tmp_path, GEMMA3 | {"sliding_window_pattern": 3})).local_layers == {0, 1, 3, 4, 6, 7}
    assert (
        AutoConfig.for_model("gemma3_text", num_hidden_layers=8).layer_types == [SLIDING] * 5 + [FULL] + [SLIDING] * 2
    )


def test_both_forms_of_the_rotary_fields_of_a_gemma_3(tmp_path: Path) -> None:
    older = {"rope_theta": 5e5, "rope_local_base_freq": 5e3, "rope_scaling": {"rope_type": "default"}}
    newer = {
        FULL: {"rope_type": "default", "rope_theta": 5e5},
        SLIDING: {"rope_type": "default", "rope_theta": 5e3},
    }
    shape = read_shape(write_fields(tmp_path, GEMMA3 | older))
    assert (shape.rope_base, shape.local_rope_base) == (5e5, 5e3)
    assert read_shape(write_fields(tmp_path, GEMMA3 | {"rope_parameters": newer})) == shape
    assert AutoConfig.for_model("gemma3_text", **older).rope_parameters == newer


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"no_rope_layers": []},
        {"no_rope_layers": [0, 1, 1, 0], "interleave_moe_layer_step": 3},
        {"no_rope_layer_interval": 3, "interleave_moe_layer_step": 2},
        {"moe_layers": [0, 3], "interleave_moe_layer_step": 0},
        {"moe_layers": []},
        {"layer_types": [FULL, "chunked_attention"] * 2, "no_rope_layers": [0, 1, 0, 0, 1]},
    ],
)
def test_the_layers_of_a_llama_4_are_those_of_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    shape = read_shape(write_fields(tmp_path, LLAMA4 | changes))
    config = AutoConfig.for_model(**LLAMA4 | changes)
    assert list(shape.sparse_layers) == config.moe_layers
    assert (shape.experts, shape.ffn_hidden) == (4 if config.moe_layers else 0, 44)
    assert shape.unturned_layers == {layer for layer in range(4) if not config.no_rope_layers[layer]}
    assert shape.local_layers == {layer for layer in range(4) if config.layer_types[layer] == "chunked_attention"}
    assert (shape.local_chunk, shape.local_window) == (7, None)
    assert [shape.sharpens(layer) for layer in range(4)] == [mark == 0 for mark in config.no_rope_layers[:4]]


def test_a_model_that_also_sees_is_refused_as_such(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"'paligemma'.*reads more than text") as error:
        read_shape(write_fields(tmp_path, {"model_type": "paligemma", "text_config": MODELS["gemma"]}))
    assert len(error.value.faults) == 1


def test_the_language_model_of_one_that_also_sees(tmp_path: Path) -> None:
    fields = MODELS["gemma3_vision"]
    shape = read_shape(write_fields(tmp_path, fields))
    assert shape == read_shape(write_fields(tmp_path, fields["text_config"]))
    # As gemma-3-4b-pt, which leaves out what transformers has as defaults.
    few = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    shape = read_shape(write_fields(tmp_path, {"model_type": "gemma3", "text_config": few}))
    assert (shape.heads, shape.query_groups, shape.vocabulary, shape.tied_embeddings) == (8, 4, 262_208, True)
    wide = RopeSettings(max_position_embeddings=96, rope_theta=2e6)
    assert read_config(write_fields(tmp_path, fields), wide)["text_config"]["rope_theta"] == 2e6
    shape = read_shape(tmp_path, wide)
    assert (shape.max_positions, shape.rope_base) == (96, 2e6)


@pytest.mark.parametrize(
    ("kind", "outer", "text", "tied"),
    [
        ("mistral3", False, True, False),
        ("mistral3", None, True, True),
        ("mistral3", True, False, False),
        ("qwen3_5_moe", None, True, False),
        ("qwen3_5_moe", True, None, True),
        ("qwen3_vl_moe", False, True, False),
        ("llama4", None, True, False),
    ],
)
def test_the_output_layer_is_tied_as_in_transformers(
    tmp_path: Path, kind: str, outer: bool | None, text: bool | None, tied: bool
) -> None:
    """Of what config.json says beside `text_config` and in it; None: nothing."""
    fields = {key: value for key, value in MODELS[kind].items() if key != "tie_word_embeddings"}
    inner = {key: value for key, value in fields["text_config"].items() if key != "tie_word_embeddings"}
    inner |= {} if text is None else {"tie_word_embeddings": text}
    outside = {} if outer is None else {"tie_word_embeddings": outer}
    assert read_shape(write_fields(tmp_path, fields | {"text_config": inner} | outside)).tied_embeddings is tied


@pytest.mark.parametrize(
    ("outer", "text", "named"),
    [
        ({"text_config": {"model_type": "bamba"}}, {}, "model_type = 'bamba'"),
        ({"quantization_config": {"quant_method": "fp8"}}, {}, "quantization_config = 'fp8'"),
        ({}, {"rms_norm_eps": -1}, "config.json: text_config: rms_norm_eps = -1"),
        ({"auto_map": {"AutoModel": "own.Own"}}, {"is_llama_config": True}, "auto_map names"),
    ],
)
def test_a_language_model_that_cannot_be_read(
    tmp_path: Path, outer: dict[str, Any], text: dict[str, Any], named: str
) -> None:
    fields = MODELS["mistral3"]
    with pytest.raises(BadInput) as error:
        read_shape(write_fields(tmp_path, fields | {"text_config": fields["text_config"] | text} | outer))
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("fields", "rule", "remedy"),
    [
        (
            {"text_config": {"model_type": "llama"}},
            "only a language model is trained here.",
            "which is a llama, as a folder",
        ),
        ({"text_config": {"model_type": "bamba"}}, "is a 'bamba'.", "of a known family"),
        ({"llm_config": {"model_type": ["llama"]}}, "only a language model", "of a known family"),
        ({"vision_config": {}}, "only a language model is trained here.", "of a known family"),
        ({"rope_config": {}}, "is not a family known here.", "Known families"),
        ({"model_type": "kimi_k2"}, "has a DeepSeek-V3's shape", "Set model_type to deepseek_v3"),
    ],
)
def test_what_to_do_with_a_model_of_an_unknown_type(
    tmp_path: Path, fields: dict[str, Any], rule: str, remedy: str
) -> None:
    with pytest.raises(BadInput) as error:
        read_shape(write_fields(tmp_path, {"model_type": "sees"} | fields))
    [fault] = error.value.faults
    assert rule in fault.rule
    assert remedy in fault.remedy


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (SMALL | {"model_type": "mistral", "layer_types": [SLIDING] * 4}, "layer_types"),
        (SMALL | {"model_type": "mistral", "sliding_window": 0}, "sliding_window = 0"),
        (SMALL | {"model_type": "qwen2", "layer_types": [SLIDING] * 4}, "although use_sliding_window is off"),
        (SMALL | {"model_type": "qwen2", "layer_types": [FULL] * 3}, "for each of 4 layers"),
        (SMALL | {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": -1}, "max_window_la"),
        (SMALL | {"model_type": "qwen2", "rope_scaling": {"type": "proportional", "factor": 4.0}}, "'proportional'"),
        (SMALL | {"rope_parameters": LONG_ROPE | {"short_factor": [1.0] * 4}}, "short_factor = '4 numbers'"),
        (MODELS["qwen2_5_vl"] | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 3]}}, "its sum must be 4"),
        (MODELS["qwen2_5_vl"] | {"rope_scaling": {"type": "mrope", "mrope_section": [2, 2]}}, "mrope_section = [2, 2]"),
        (without(MODELS["qwen2_5_vl"], "rope_scaling"), "transformers needs it in this family"),
        (SMALL | {"rope_parameters": LONG_ROPE | {"long_factor": [1.0, 2.0, 0.0, 1.0, 1.0]}}, "long_factor = ["),
        (MODELS["phi3"] | {"partial_rotary_factor": 0.3}, "partial_rotary_factor = 0.3"),
        (MODELS["phi3"] | {"full_attn_mod": 2, "auto_map": {"AutoModel": "phi.Phi"}}, "full_attn_mod = 2"),
        (MODELS["phi3"] | {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type = 'linear'"),
        (MODELS["ministral"] | {"sliding_window": None, "layer_types": [FULL] * 4}, "sliding_window = None"),
        (without(MODELS["ministral"], "head_dim"), "head_dim = None"),
        (MODELS["olmo3_plain"] | {"sliding_window": None, "layer_types": [FULL] * 4}, "sliding_window = None"),
        (MODELS["smollm3_yarn"] | {"sliding_window": None}, "does not say how long it is"),
        (MODELS["exaone4"] | {"sliding_window_pattern": "LG"}, "State layer_types"),
        (without(MODELS["exaone4_whole"], "layer_types"), "State layer_types"),
        (MODELS["exaone4"] | {"rope_parameters": YARN}, "attention_factor of the RoPE scaling = 1.13"),
        (MODELS["nemotron"] | {"partial_rotary_factor": 0.25, "rope_scaling": DYNAMIC}, "partial_rotary_factor = 0.25"),
        (MODELS["smollm3"] | {"no_rope_layers": [1, 0, 2, 1]}, "no_rope_layers = [1, 0, 2, 1]"),
        (MODELS["smollm3"] | {"no_rope_layers": [1, 0]}, "for each of 4 layers"),
        (MODELS["qwen2_moe"] | {"use_sliding_window": True}, "use_sliding_window"),
        (MODELS["qwen2_moe"] | {"num_experts_per_tok": 7}, "there are 6 experts"),
        (MODELS["qwen3_next"] | {"linear_num_value_heads": 3}, "linear_num_value_heads = 3"),
        (MODELS["qwen3_next"] | {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        (MODELS["qwen3_next"] | {"layer_types": [SLIDING] * 4}, "full_attention and linear_attention"),
        (MODELS["qwen3_5_moe_text"] | {"num_experts_per_tok": 1}, "num_experts_per_tok = 1"),
        (
            MODELS["qwen3_5_moe_text"] | {"quantization_config": {"quant_method": "mxfp4"}},
            "quantization_config = 'mxfp4'",
        ),
        (MODELS["olmoe"] | {"clip_qkv": 8.0}, "clip_qkv = 8.0"),
        (MODELS["glm4_moe"] | {"norm_topk_prob": False}, "norm_topk_prob = False"),
        (MODELS["glm4_moe"] | {"num_experts_per_tok": 1}, "must be sent to at least two"),
        (MODELS["glm4_moe"] | {"first_k_dense_replace": 4}, "first_k_dense_replace = 4"),
        (MODELS["glm4_moe"] | {"n_group": 4}, "n_group = 4"),
        (MODELS["glm4_moe_groups"] | {"num_experts_per_tok": 2}, "by its best 1, transformers by two"),
        (MODELS["glm4_moe_groups"] | {"topk_group": 1}, "are not in so many groups"),
        (MODELS["deepseek_v3"] | {"rope_interleave": False}, "rope_interleave = False"),
        (MODELS["deepseek_v3"] | {"num_key_value_heads": 2}, "each head has keys of its own"),
        (MODELS["deepseek_v3"] | {"attention_bias": True}, "attention_bias = True"),
        (MODELS["deepseek_v2"] | {"topk_method": "group_limited_greedy"}, "topk_method = 'group_limited_greedy'"),
        (MODELS["gpt_oss"] | {"swiglu_alpha": 1.5}, "swiglu_alpha = 1.5"),
        (MODELS["gpt_oss"] | {"swiglu_limit": 0}, "swiglu_limit = 0"),
        (MODELS["gpt_oss"] | {"sliding_window": None, "layer_types": [FULL] * 4}, "sliding_window = None"),
        (MODELS["gpt_oss"] | {"num_experts_per_tok": 1}, "sends a token to at least two"),
        (MODELS["llama4_text"] | {"num_experts_per_tok": 2}, "num_experts_per_tok = 2"),
        (MODELS["llama4_text"] | {"num_experts_per_tok": 5}, "there are 4 experts"),
        (MODELS["llama4_text"] | {"attention_chunk_size": None}, "attention_chunk_size = None"),
        (MODELS["llama4_text"] | {"attn_temperature_tuning": 4}, "State true where older folders have 4"),
        (MODELS["llama4_text"] | {"floor_scale": 0}, "floor_scale = 0"),
        (MODELS["llama4_text"] | {"attn_scale": "0.1"}, "attn_scale = '0.1'"),
        (MODELS["llama4_text"] | {"no_rope_layers": [1, 0, 1]}, "for each of 4 layers"),
        (MODELS["llama4_text"] | {"layer_types": [SLIDING] * 4}, "full_attention and chunked_attention"),
        (without(MODELS["llama4_text"], "layer_types") | {"no_rope_layers": [1] * 5}, "for each of 4 layers"),
        (MODELS["llama4_text"] | {"moe_layers": [4]}, "moe_layers = [4]"),
        (MODELS["llama4_text"] | {"interleave_moe_layer_step": 0}, "interleave_moe_layer_step = 0"),
        (MODELS["llama4_text"] | {"rope_parameters": YARN}, "attention_factor of the RoPE scaling = 1.13"),
        (MODELS["llama4_text"] | {"head_dim": 9}, "head_dim = 9"),
        (without(MODELS["llama4_text"], "hidden_size"), "hidden_size = None"),
        (MODELS["mixtral"] | {"quantization_config": {"quant_method": "mxfp4"}}, "quantization_config = 'mxfp4'"),
        (MODELS["olmo3_plain"] | {"rope_theta": 1e4}, "differ in whether local layers"),
        (MODELS["exaone4"] | {"sliding_window_pattern": 0}, "must be a period such as 4 or LLLG"),
        (MODELS["gemma"] | {"hidden_act": "silu"}, "hidden_act = 'silu'"),
        (MODELS["granite"] | {"logits_scaling": 0}, "logits_scaling = 0"),
        (MODELS["granite4"] | {"num_local_experts": 62}, "a Granite 4 with experts"),
        (MODELS["granite4"] | {"layer_types": ["mamba", *["attention"] * 3]}, "Mamba's are not supported"),
        (without(MODELS["granite4"], "layer_types"), "layer_types = ['mamba']"),
        (MODELS["apertus"] | {"hidden_act": "silu"}, "hidden_act = 'silu'"),
        (MODELS["apertus"] | {"rope_theta": 5e5}, "differ in what positions these are"),
        (MODELS["ministral3"] | {"rope_parameters": YARN}, "llama_4_scaling_beta = None"),
        (
            MODELS["ministral3"] | {"rope_parameters": {"rope_type": "default", "llama_4_scaling_beta": 0.1}},
            "original_max_position_embeddings = None",
        ),
        (GEMMA3 | {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
        (GEMMA3 | {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (GEMMA3 | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "full_attention and sliding"),
        (GEMMA3 | {"rope_parameters": {SLIDING: LLAMA3}}, "never rescaled"),
        (NEOX | {"hidden_act": "relu"}, "hidden_act = 'relu'"),
        (NEOX | {"attention_bias": False}, "attention_bias"),
        (NEOX | {"num_attention_heads": 3, "rotary_pct": 0.4}, "hidden_size = 32"),
        (NEOX | {"rotary_pct": 0.2}, "rotary_pct = 0.2"),
        (NEOX | {"rotary_pct": 2.0}, "rotary_pct = 2.0"),
        (NEOX | {"use_parallel_residual": 1}, "use_parallel_residual"),
        (NEOX | {"rms_norm_eps": 1e-5}, "rms_norm_eps"),
    ],
)
def test_a_field_that_a_family_cannot_honour_is_named(tmp_path: Path, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput) as error:
        read_shape(write_fields(tmp_path, fields))
    assert named in str(error.value)
    assert len(error.value.faults) == 1
