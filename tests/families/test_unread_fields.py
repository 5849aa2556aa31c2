"""What transformers does not read of a config.json changes nothing, and keeps no model out."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers

from megatron_cpt.config.errors import BadInput
from megatron_cpt.families import transformers_fields
from megatron_cpt.families.shape import read_shape, unread_fields
from tests.families.folders import NEOX, QWEN3_MOE, SMALL, write_fields

TOOL = Path(__file__).parents[2] / "tools/transformers_fields.py"
# What published folders have beside the fields of their family.
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "SmolLM2": (SMALL, {"is_llama_config": True, "rope_interleaved": False}),
    "Falcon3": (SMALL, {"activation": "swiglu"}),
    "unsloth": (SMALL, {"unsloth_fixed": True, "unsloth_version": "2024.9"}),
    "GPT-NeoX-20B": (NEOX, {"attention_probs_dropout_prob": 0, "hidden_dropout_prob": 0}),
    "OpenLLaMA": (SMALL, {"max_sequence_length": 2048}),
    "Qwen3-Coder": (
        QWEN3_MOE,
        {"qkv_bias": False, "use_qk_norm": True, "shared_expert_intermediate_size": 0},
    ),
    "Qwen2.5-1M": (SMALL | {"model_type": "qwen2"}, {"dual_chunk_attention_config": {"chunk_size": 262144}}),
    "another program's": (SMALL | {"model_type": "mistral"}, {"attention_bias": True, "final_logit_softcapping": 30.0}),
}
HARMLESS = {"_attn_implementation_autoset": True, "neftune_noise_alpha": 5, "gradient_checkpointing": True}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_folders_are_read_and_their_own_fields_named(tmp_path: Path, name: str) -> None:
    fields, further = PUBLISHED[name]
    shape = read_shape(write_fields(tmp_path, fields))
    folder = write_fields(tmp_path, fields | further | HARMLESS)
    assert read_shape(folder) == shape
    assert unread_fields(folder) == list(further)


@pytest.mark.parametrize(
    "fields",
    [
        SMALL | {"model_type": "gemma", "use_bidirectional_attention": True},
        SMALL | {"sliding_window": 512},
        SMALL | {"layer_types": ["sliding_attention"] * 4},
        SMALL | {"is_causal": False},
        SMALL | {"attention_chunk_size": 8},
        SMALL | {"num_experts_per_tok": 2, "auto_map": {"AutoModelForCausalLM": "modeling.Model"}},
    ],
)
def test_what_transformers_or_code_of_the_folder_may_read_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(BadInput) as error:
        read_shape(write_fields(tmp_path, fields))
    assert ("take both out" in str(error.value)) is ("auto_map" in fields)


@pytest.mark.skipif(
    transformers.__version__ != transformers_fields.VERSION, reason="the table is of another release of transformers"
)
def test_the_table_is_what_transformers_reads() -> None:
    written = subprocess.run([sys.executable, TOOL], capture_output=True, text=True, check=True).stdout
    assert Path(transformers_fields.__file__).read_text() == written, f"run {TOOL} anew"
