"""Models whose layers are Transformer Engine's, without its kernels: names, keys, marks, checkpoints, Hugging Face."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from tests.families.folders import MODELS, write_fields
from tests.model import engine_stub
from tests.params import quick_among

pytestmark = pytest.mark.skipif(engine_stub.missing() is not None, reason=str(engine_stub.missing()))
OWN_LAYERS = (
    *("deepseek_v3", "nemotron", "olmoe", "olmo2", "olmo3", "exaone4", "gemma", "gemma2", "gemma3_tied"),
    *("ministral3", "gpt_oss", "llama4_text"),
)
"""Families with parts that Transformer Engine lacks."""
EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe_mixed", "glm4_moe")
KINDS = (
    *("llama_tied", "llama_biased", "mistral", "qwen2", "qwen3", "phi3_long", "smollm3", "gpt_neox", "starcoder2"),
    *("granite", "apertus", "seed_oss"),
    *EXPERTS,
    *OWN_LAYERS,
)
QUICK = {kind for kind in KINDS if kind not in ("granite", "apertus", "seed_oss", "ministral3")}
EACH = quick_among(KINDS, QUICK)


def two_layers(kind: str) -> dict[str, Any]:
    """The fields of a model of two layers."""
    fields = MODELS[kind] | {"num_hidden_layers": 2}
    return fields | ({"layer_types": fields["layer_types"][:2]} if "layer_types" in fields else {})


Seen = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """What a process with the stub saw of a kind; all quick ones, or all slow ones, are seen by one process."""
    root = tmp_path_factory.mktemp("engine")
    found: dict[str, dict[str, Any]] = {}

    def of(kind: str) -> dict[str, Any]:
        if kind not in found:
            kinds = [one for one in KINDS if (one in QUICK) == (kind in QUICK)]
            folders = [str(write_fields(root / one, two_layers(one))) for one in kinds]
            command = [sys.executable, "-W", "ignore", "-m", "tests.model.engine_worker", *folders]
            environment = dict(os.environ) | {"CUDA_VISIBLE_DEVICES": ""}
            ended = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True)
            found.update(orjson.loads(ended.stdout))
        return found[kind]

    return of


@pytest.mark.parametrize("kind", EACH)
def test_a_model_of_its_layers_is_the_same_model(seen: Seen, kind: str) -> None:
    found = seen(kind)
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


@pytest.mark.parametrize("kind", EACH)
def test_kernels_are_those_of_the_familys_layers(seen: Seen, kind: str) -> None:
    found = seen(kind)
    assert found["rope_fusion"] == (kind not in OWN_LAYERS)
    assert found["grouped"] == (kind in EXPERTS)


@pytest.mark.parametrize("kind", EACH)
def test_every_matrix_that_is_divided_is_marked(seen: Seen, kind: str) -> None:
    whole = ("router", "gate_weight")
    assert [name for name in seen(kind)["undivided"] if not any(part in name for part in whole)] == []
