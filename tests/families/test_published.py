"""The config.json of published models is read whole, and docs/families.md has a row for each of them."""

import re
from pathlib import Path

import pytest

from megatron_cpt.families.shape import read_shape, unread_fields
from megatron_cpt.families.size import parameter_count
from tests.checkpoint.hf_models import transformers_count
from tests.families.folders import MODELS, write_fields
from tests.families.published import PUBLISHED

PAGE = Path(__file__).parents[2] / "docs/families.md"
# What transformers does not read either; `plan` names it.
UNREAD = {
    "SmolLM3-3B": ["max_window_layers"],
    "Minitron-4B-Base": ["kv_channels"],
    "StarCoder2-3B": ["norm_type", "mlp_type"],
    "Apertus-8B-2509": ["qk_norm", "post_norm"],
    "Qwen3-Next-80B-A3B-Instruct": ["use_sliding_window"],
    "Llama-4-Scout-17B-16E": ["for_llm_compressor"],
    "Llama-4-Maverick-17B-128E-Instruct": ["for_llm_compressor"],
    "gpt-oss-20b": ["initial_context_length", "experts_per_token"],
    "gpt-oss-120b": ["initial_context_length", "experts_per_token"],
}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_a_published_config_is_read_and_counted_as_transformers_does(tmp_path: Path, name: str) -> None:
    fields = PUBLISHED[name]
    folder = write_fields(tmp_path, fields)
    of_no_model = ("auto_map", "quantization_config")
    read = {field: value for field, value in fields.items() if field not in of_no_model}
    assert parameter_count(read_shape(folder)) == transformers_count(read)
    assert unread_fields(folder) == UNREAD.get(name, [])


def test_the_page_has_a_row_for_each() -> None:
    section = PAGE.read_text().split("## Published models")[1].split("## ")[0]
    rows = [row.split(" | ") for row in re.findall(r"^\| (.*) \|$", section, re.MULTILINE)]
    assert [row[0] for row in rows[1:]] == list(PUBLISHED)
    for name, family, _, kinds in rows[1:]:
        assert family == f"`{PUBLISHED[name]['model_type']}`"
        named = kinds.split(", ")
        assert {f"`{MODELS[kind.strip('`')]['model_type']}`" for kind in named} == {family}
