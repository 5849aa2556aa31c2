"""What only Transformer Engine has is refused where it is not usable; so are more processes than GPUs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_cpt.config.errors import BadInput
from megatron_cpt.families.shape import read_shape
from megatron_cpt.model.build import ModelOptions, transformer_config
from megatron_cpt.model.environment_checks import crowding_faults, engine_faults
from megatron_cpt.model.layers import transformer_engine_usable
from megatron_cpt.planning.checks import model_faults
from tests.config.examples import config_with
from tests.families.folders import MODELS, write_fields
from tests.families.test_size import LLAMA_3_8B

without_engine = pytest.mark.skipif(transformer_engine_usable(), reason="Transformer Engine is usable here")


@without_engine
@pytest.mark.parametrize(
    "passed",
    [{"fp8": "hybrid"}, {"use_te_rng_tracker": True}, {"moe_grouped_gemm": True}],
    ids=lambda passed: next(iter(passed)),
)
def test_a_field_of_transformer_engine_is_refused_with_the_remedy(passed: dict[str, Any]) -> None:
    (fault,) = engine_faults(config_with(megatron={"transformer": passed}), LLAMA_3_8B)
    ((name, value),) = passed.items()
    assert fault.value == f"megatron.transformer.{name} = {value!r}"
    assert "Transformer Engine" in fault.rule
    assert "take this out" in fault.remedy.lower()


@without_engine
def test_what_any_layer_has_is_left_alone() -> None:
    passed = {"fp8": None, "use_te_rng_tracker": False, "moe_token_dispatcher_type": "allgather"}
    assert list(engine_faults(config_with(megatron={"transformer": passed}), LLAMA_3_8B)) == []


def test_what_the_familys_layers_do_not_have_is_refused_by_the_plan() -> None:
    gemma = replace(LLAMA_3_8B, family="gemma2", post_norm=True, zero_centered_norms=True)
    config = config_with(megatron={"transformer": {"fp8": "hybrid"}})
    (fault,) = model_faults(config, gemma)
    assert "no layers of family gemma2" in fault.rule
    assert list(engine_faults(config, gemma)) == []  # once is enough


def test_a_field_may_be_passed_with_the_value_that_it_has(tmp_path: Path) -> None:
    shape = read_shape(write_fields(tmp_path, MODELS["mixtral"]))
    options = ModelOptions(sequence_length=8, transformer_engine=False, transformer={"moe_grouped_gemm": False})
    assert transformer_config(shape, options).moe_grouped_gemm is False
    with pytest.raises(BadInput, match="sets moe_grouped_gemm itself, to False"):
        transformer_config(shape, replace(options, transformer={"moe_grouped_gemm": True}))


def test_a_process_has_a_gpu_of_its_own() -> None:
    assert list(crowding_faults(8, 8)) == []
    assert [fault.value for fault in crowding_faults(4, 1)] == ["4 processes on a machine with 1 visible GPU"]
    assert [fault.remedy[:7] for fault in crowding_faults(4, 2)] == ["Start 2"]
