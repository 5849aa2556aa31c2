"""What only Transformer Engine has is refused where it is not usable."""

from typing import Any

import pytest

from megatron_cpt.model.machine import machine_faults
from megatron_cpt.model.specs import transformer_engine_usable
from tests.config.examples import config_with

pytestmark = pytest.mark.skipif(transformer_engine_usable(), reason="Transformer Engine is usable here")


@pytest.mark.parametrize(
    ("section", "passed"),
    [
        ("transformer", {"fp8": "hybrid"}),
        ("transformer", {"tp_comm_overlap": True}),
        ("transformer", {"moe_grouped_gemm": True}),
        ("ddp", {"fp8_param_gather": True}),
    ],
)
def test_a_field_of_transformer_engine_is_refused_with_the_remedy(section: str, passed: dict[str, Any]) -> None:
    (fault,) = machine_faults(config_with(megatron={section: passed}))
    ((name, value),) = passed.items()
    assert fault.value == f"megatron.{section}.{name} = {value!r}"
    assert "Transformer Engine" in fault.rule
    assert "take this out" in fault.remedy.lower()


def test_what_any_layer_has_is_left_alone() -> None:
    passed = {"fp8": None, "tp_comm_overlap": False, "moe_token_dispatcher_type": "allgather"}
    assert list(machine_faults(config_with(megatron={"transformer": passed}))) == []
