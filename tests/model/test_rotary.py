"""Rotary frequencies: transformers' own, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatron_cpt.families.rope import LinearScaling, Llama3Scaling, YarnScaling
from megatron_cpt.families.shape import read_shape
from megatron_cpt.model.rope import frequencies, score_scale
from tests.families.folders import LLAMA3_ROPE, SMALL, YARN, write_fields

SCALINGS = [
    LLAMA3_ROPE,
    YARN,
    {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768},
    # As in Llama 4: none of the wavelengths is blended.
    LLAMA3_ROPE | {"factor": 16.0, "high_freq_factor": 1.0},
    YARN | {"truncate": False, "attention_factor": 0.7, "beta_slow": 1.5},
    YARN | {"mscale": 1.0, "mscale_all_dim": 0.5},
    {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
]


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("head_dim", [10, 128])
def test_scaled_frequencies_are_those_of_transformers(tmp_path: Path, scaling: dict[str, Any], head_dim: int) -> None:
    fields = SMALL | {"rope_parameters": scaling, "head_dim": head_dim, "max_position_embeddings": 131_072}
    shape = read_shape(write_fields(tmp_path, fields))
    expected, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](AutoConfig.from_pretrained(tmp_path), "cpu")
    assert torch.equal(frequencies(shape.rope_base, head_dim, shape.rope_scaling), expected)
    assert (score_scale(shape) or head_dim**-0.5) == pytest.approx(head_dim**-0.5 * factor**2, rel=1e-12)


def test_frequencies_in_numbers() -> None:
    # Wavelengths of 2 pi, 20 pi, 200 pi and 2000 pi tokens.
    def close(values: list[float]) -> Any:
        return pytest.approx(values, rel=1e-6)

    assert frequencies(1e4, 8).tolist() == close([1.0, 0.1, 0.01, 0.001])
    assert frequencies(1e4, 8, LinearScaling(4.0)).tolist() == close([0.25, 0.025, 0.0025, 0.00025])
    # 628.3 of 1,000 tokens lies between 1000 / 4 and 1000 / 1: a share of (1000 / 628.3 - 1) / 3 = 0.197 is kept.
    llama3 = frequencies(1e4, 8, Llama3Scaling(4.0, 1.0, 4.0, 1000)).tolist()
    assert llama3 == close([1.0, 0.1, 0.01 * (0.25 + 0.75 * (1000 / (200 * torch.pi) - 1) / 3), 0.00025])
    # Dimensions 0.43 and 2.20 turn 59 and 1 times within 1,000 tokens; rounded to 0 and 3, a third is lost at each.
    yarn = frequencies(1e4, 8, YarnScaling(4.0, 1000, 59.0, 1.0, 1.0, True)).tolist()
    assert yarn == close([1.0, 0.1 * 0.75, 0.01 * 0.5, 0.00025])
