"""config.json with other rotary positions, in both forms that transformers has written."""

from typing import Any

import pytest

from megatron_cpt.config.schema import RopeSettings
from megatron_cpt.families.rope import with_positions

OLDER = {"model_type": "llama", "max_position_embeddings": 2048, "rope_theta": 10_000.0, "rope_scaling": None}
NEWER = {
    "model_type": "llama",
    "max_position_embeddings": 2048,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
}
NEOX = {"model_type": "gpt_neox", "max_position_embeddings": 2048, "rotary_emb_base": 10_000, "rotary_pct": 0.25}


@pytest.mark.parametrize(
    ("fields", "rope", "expected"),
    [
        (OLDER, {"rope_theta": 5e5}, {"rope_theta": 5e5}),
        (NEOX, {"rope_theta": 5e5}, {"rotary_emb_base": 5e5, "rotary_pct": 0.25}),
        (NEWER, {"rope_theta": 5e5}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        (
            OLDER,
            {"scaling": "linear"},
            {"rope_theta": 10_000.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        ),
        (
            OLDER,
            {"scaling": "llama3", "factor": 8.0, "extra": {"high_freq_factor": 2.0}},
            {
                "rope_theta": 10_000.0,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "original_max_position_embeddings": 2048,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 2.0,
                },
            },
        ),
        (
            NEWER,
            {"scaling": "yarn", "original_positions": 1024},
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 10_000.0,
                    "factor": 8.0,
                    "original_max_position_embeddings": 1024,
                }
            },
        ),
    ],
)
def test_positions_in_config_json(fields: dict[str, Any], rope: dict[str, Any], expected: dict[str, Any]) -> None:
    changed = with_positions(fields, RopeSettings(max_position_embeddings=8192, **rope))
    assert changed == {"model_type": fields["model_type"], "max_position_embeddings": 8192, **expected}
    assert fields["max_position_embeddings"] == 2048


def test_a_scaling_of_the_folder_is_kept_or_taken_out() -> None:
    scaled = OLDER | {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 1024}}
    assert (
        with_positions(scaled, RopeSettings(max_position_embeddings=4096, rope_theta=5e5))["rope_scaling"]
        == scaled["rope_scaling"]
    )
    assert "rope_scaling" not in with_positions(scaled, RopeSettings(max_position_embeddings=4096, scaling="none"))
    # Another factor counts from what the model was made for before its own scaling.
    again = with_positions(scaled, RopeSettings(max_position_embeddings=4096, scaling="yarn"))["rope_scaling"]
    assert again == {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


def test_of_two_kinds_of_layers_those_that_see_all_change() -> None:
    local = {"rope_type": "default", "rope_theta": 10_000.0}
    both = {"full_attention": {"rope_type": "default", "rope_theta": 1e6}, "sliding_attention": local}
    fields = {"max_position_embeddings": 2048, "rope_parameters": both}
    changed = with_positions(fields, RopeSettings(max_position_embeddings=8192, scaling="linear"))
    assert changed["max_position_embeddings"] == 8192
    assert changed["rope_parameters"] == {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 4.0},
        "sliding_attention": local,
    }
