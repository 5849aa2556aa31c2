"""Models whose layers are Transformer Engine's, without its kernels: names, keys, marks, checkpoints, Hugging Face."""

import os
import subprocess
import sys
from typing import Any

import orjson
import pytest

from tests.families.folders import MODELS, write_fields
from tests.model import engine_stub

pytestmark = pytest.mark.skipif(engine_stub.missing() is not None, reason=str(engine_stub.missing()))
OWN_LAYERS = ("deepseek_v3", "nemotron", "olmoe", "olmo2", "olmo3", "exaone4", "gemma", "gemma2", "gemma3_tied")
"""Families with parts that Transformer Engine lacks."""
EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe_mixed", "glm4_moe")
KINDS = (
    *("llama_tied", "llama_biased", "mistral", "qwen2", "qwen3", "phi3_long", "smollm3", "gpt_neox", "starcoder2"),
    *EXPERTS,
    *OWN_LAYERS,
)


def two_layers(kind: str) -> dict[str, Any]:
    """The fields of a model of two layers."""
    fields = MODELS[kind] | {"num_hidden_layers": 2}
    return fields | ({"layer_types": fields["layer_types"][:2]} if "layer_types" in fields else {})


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process with the stub saw of each kind."""
    root = tmp_path_factory.mktemp("engine")
    folders = [str(write_fields(root / kind, two_layers(kind))) for kind in KINDS]
    command = [sys.executable, "-W", "ignore", "-m", "tests.model.engine_worker", *folders]
    environment = dict(os.environ) | {"CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True)
    found: dict[str, Any] = orjson.loads(ended.stdout)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_its_layers_is_the_same_model(seen: dict[str, Any], kind: str) -> None:
    found = seen[kind]
    assert "error" not in found, found["error"]
    assert ("TERowParallelLinear" in found["modules"]) == (kind not in OWN_LAYERS)
    assert found["unnamed"] == []
    assert found["keys"]["local"] == found["keys"]["engine"]
    assert found["loads"] == {
        "local to engine": True,
        "engine to local": True,
        "engine to engine": True,
        "engine to Hugging Face to local": True,
    }
    assert found["outline"] == found["parameters"]


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_are_those_of_the_familys_layers(seen: dict[str, Any], kind: str) -> None:
    found = seen[kind]
    assert found["rope_fusion"] == (kind not in OWN_LAYERS)
    assert found["grouped"] == (kind in EXPERTS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_matrix_that_is_divided_is_marked(seen: dict[str, Any], kind: str) -> None:
    whole = ("router", "gate_weight")
    assert [name for name in seen[kind]["undivided"] if not any(part in name for part in whole)] == []
