from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from megatron_cpt.config.errors import BadInput
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.rope import DynamicScaling, LinearScaling, Llama3Scaling, LongRopeScaling, YarnScaling
from megatron_cpt.families.shape import name_table, read_shape
from megatron_cpt.families.weights import Place
from tests.families.folders import LONG_ROPE, MODELS, write_config, write_fields

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_every_number_is_read(tmp_path: Path) -> None:
    folder = write_config(tmp_path, rope_theta=5e5, architectures=["LlamaForCausalLM"])
    assert read_shape(folder) == ModelShape(
        family="llama",
        layers=4,
        hidden=32,
        ffn_hidden=44,
        heads=4,
        query_groups=2,
        head_dim=10,
        vocabulary=101,
        max_positions=64,
        norm_epsilon=1e-5,
        rope_base=5e5,
        rope_scaling=None,
        tied_embeddings=False,
    )


def test_a_config_of_the_first_llama_has_transformers_defaults(tmp_path: Path) -> None:
    names = ("num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings")
    shape = read_shape(write_config(tmp_path, **dict.fromkeys(names)))
    assert (shape.query_groups, shape.head_dim, shape.norm_epsilon) == (4, 8, 1e-6)
    assert (shape.max_positions, shape.tied_embeddings, shape.rope_base) == (2048, False, 10_000.0)


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_scaling": None},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    ],
)
def test_both_places_of_the_rotary_base_are_known(tmp_path: Path, fields: dict[str, Any]) -> None:
    shape = read_shape(write_config(tmp_path, **fields))
    assert (shape.rope_base, shape.rope_scaling) == (5e5, None)


@pytest.mark.parametrize(
    "fields",
    [{"rope_theta": 5e5, "rope_scaling": LLAMA3}, {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}}],
)
def test_llama3_scaling_is_read_in_both_places(tmp_path: Path, fields: dict[str, Any]) -> None:
    shape = read_shape(write_config(tmp_path, **fields))
    assert shape.rope_base == 5e5
    assert shape.rope_scaling == Llama3Scaling(32.0, 1.0, 4.0, 8192)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"type": "linear", "factor": 4}, LinearScaling(4.0)),
        # 0.1 ln 4 + 1
        ({"factor": 4}, YarnScaling(4.0, 32, 32.0, 1.0, 1.138629436111989, True)),
        ({"factor": 4, "attention_factor": 0.5, "truncate": False}, YarnScaling(4.0, 32, 32.0, 1.0, 0.5, False)),
        # (0.1 ln 4 + 1) / (0.05 ln 4 + 1)
        (
            {"factor": 4, "mscale": 1, "mscale_all_dim": 0.5, "beta_fast": 16, "beta_slow": 2},
            YarnScaling(4.0, 32, 16.0, 2.0, 1.0648216253695715, True, 0.5),
        ),
    ],
)
def test_kinds_of_scaling(tmp_path: Path, given: dict[str, Any], expected: LinearScaling | YarnScaling) -> None:
    scaling = {"type": "yarn", "original_max_position_embeddings": 32} | given
    if scaling["type"] == "linear":
        del scaling["original_max_position_embeddings"]
    shape = read_shape(write_config(tmp_path, rope_scaling=scaling))
    found = shape.rope_scaling
    assert type(found) is type(expected)
    assert asdict(found) == pytest.approx(asdict(expected), rel=1e-7)
    # Folders state the positions before YaRN, or those with it: 4 * 32 here.
    assert shape.max_positions == (128 if scaling["type"] == "yarn" else 64)


def test_a_dynamic_scaling_makes_a_model_for_more_positions(tmp_path: Path) -> None:
    shape = read_shape(write_config(tmp_path, rope_scaling={"type": "dynamic", "factor": 4.0}))
    assert (shape.rope_scaling, shape.max_positions) == (DynamicScaling(4.0, 64), 256)


@pytest.mark.parametrize(
    ("stated", "attention_factor"),
    # sqrt(1 + ln(64 / 16) / ln 16), sqrt(1 + ln 2 / ln 16), and as it is written.
    [({}, 1.224744871391589), ({"factor": 2.0}, 1.118033988749895), ({"attention_factor": 1.5}, 1.5)],
)
def test_a_long_rope(tmp_path: Path, stated: dict[str, float], attention_factor: float) -> None:
    found = read_shape(write_config(tmp_path, rope_parameters=LONG_ROPE | stated)).rope_scaling
    assert isinstance(found, LongRopeScaling)
    assert found.long == (1.0, 1.5, 2.5, 4.0, 6.0)
    assert found.attention_factor == pytest.approx(attention_factor, rel=1e-12)
    # transformers prefers the field outside.
    outside = write_config(tmp_path, rope_parameters=LONG_ROPE, original_max_position_embeddings=32)
    assert read_shape(outside).rope_scaling == replace(found, original_positions=32, attention_factor=(6 / 5) ** 0.5)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "mamba"}, "model_type = 'mamba'"),
        ({"hidden_act": "relu6"}, "hidden_act"),
        ({"hidden_act": ["silu"]}, "hidden_act"),
        ({"attention_bias": "yes"}, "attention_bias"),
        ({"mlp_bias": 1.5}, "mlp_bias"),
        ({"rope_scaling": {"type": "dynamic", "factor": 0.5}}, "factor = 0.5"),
        ({"rope_scaling": {"type": "ntk", "factor": 2.0}}, "'ntk'"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor = 0"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "original_max_position_embeddings = None"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 0.5}}, "high_freq_factor = 0.5"),
        ({"rope_scaling": LLAMA3 | {"attention_factor": 2.0}}, "attention_factor"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_scaling": LLAMA3, "rope_parameters": LLAMA3}, "both given"),
        ({"rope_scaling": "llama3"}, "must be an object"),
        ({"sliding_window": 512}, "sliding_window"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes"}},
            "quantization_config = 'bitsandbytes': the weights",
        ),
        ({"torch_dtype": 16}, "torch_dtype = 16"),
        ({"hidden_size": 10**12}, "hidden_size = 1000000000000: no model has more than 1,000,000"),
        ({"vocab_size": 10**12}, "vocab_size = 1000000000000"),
        ({"intermediate_size": 2**63}, "intermediate_size"),
        ({"max_position_embeddings": 10**15}, "max_position_embeddings"),
        ({"hidden_size": None}, "hidden_size = None"),
        ({"num_hidden_layers": "4"}, "num_hidden_layers = '4'"),
        ({"num_hidden_layers": True}, "num_hidden_layers = True"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 7}, "head_dim"),
    ],
)
def test_a_field_that_cannot_be_honoured_is_named(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput) as error:
        read_shape(write_config(tmp_path, **changes))
    assert named in str(error.value)
    assert len(error.value.faults) == 1


def test_all_faults_are_listed_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as error:
        read_shape(write_config(tmp_path, hidden_act="relu6", mlp_bias="no", sliding_window=512))
    assert [fault.value.split(": ")[1] for fault in error.value.faults] == [
        "hidden_act = 'relu6'",
        "mlp_bias = 'no'",
        "sliding_window = 512",
    ]


@pytest.mark.parametrize("given", [{}, {"text_config": None}, {"text_config": ["llama"]}])
def test_a_model_that_sees_and_does_not_say_what_reads_its_text_has_one_fault(
    tmp_path: Path, given: dict[str, Any]
) -> None:
    write_fields(tmp_path, {name: value for name, value in MODELS["llava"].items() if name != "text_config"} | given)
    with pytest.raises(BadInput, match=r"text_config = .* the language model of a llava") as raised:
        read_shape(tmp_path)
    assert len(raised.value.faults) == 1


def test_harmless_and_empty_fields_are_no_fault(tmp_path: Path) -> None:
    fields = {"use_cache": True, "bos_token_id": 1, "pretraining_tp": 2, "is_decoder": False, "pruned_heads": {}}
    assert read_shape(write_config(tmp_path, **fields)).layers == 4


@pytest.mark.parametrize("content", [None, b"{", b"[]"])
def test_a_folder_without_a_config_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(BadInput, match=r"config\.json"):
        read_shape(tmp_path)


def test_the_name_table_numbers_layers_globally_and_knows_both_spellings(tmp_path: Path) -> None:
    table = name_table(read_shape(write_config(tmp_path)))
    rule, place = table["decoder.layers.3.mlp.linear_fc1.layer_norm_weight"]
    assert (rule, place) == table["decoder.layers.3.pre_mlp_layernorm.weight"]
    assert place == Place(layer=3)
    assert "decoder.layers.4.mlp.linear_fc2.weight" not in table
