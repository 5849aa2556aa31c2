"""HybridModel in the place of GPTModel: the same bits, and checkpoints that each reads of the other."""

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from megatron_cpt.checkpoint.dcp import Stored, stored_places
from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.families.shape import read_shape
from megatron_cpt.parallel import groups
from tests.families.folders import MODELS, write_fields
from tests.parallel import matrix
from tests.ranks import Ranks
from tests.train.runs import without_gpt_model
from tests.workshop import Workshop

pytestmark = pytest.mark.skipif(
    not matrix.HAS_BOTH_MODELS, reason="Megatron-Core has no HybridModel before 0.18; this release is older"
)
# One for each kind of layout, and a family for each kind of layer.
SHORT = (
    "llama_tied; pipeline 2 x 2 chunks",
    "gpt_neox; tensor 2, sequence",
    "qwen3_moe_mixed; data 2, distributed optimizer, both overlaps",
    "gemma3; one process",
)


@pytest.mark.parametrize(
    "name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.slow) for name in matrix.BUILDERS]
)
def test_both_give_the_same_and_go_on_from_each_other(
    request: pytest.FixtureRequest, workshop: Workshop, tmp_path: Path, name: str
) -> None:
    chosen = matrix.BUILDERS[name]
    pool: Ranks = request.getfixturevalue({1: "one_rank", 2: "two_ranks", 4: "four_ranks"}[chosen.ranks])
    matrix.compare_builders(pool, workshop, tmp_path, chosen)


def places_of(folder: Path, per_layer_keys: bool) -> list[tuple[dict[str, Stored], list[str]]]:
    """A job: where conversions find the parameters of a model, as GPTModel and as HybridModel."""
    groups.init_model_parallel(ParallelSettings())
    found = []
    for release in (nullcontext(), without_gpt_model()):
        with release:
            places, values = stored_places(read_shape(folder), per_layer_keys)
        found.append((places, sorted(values)))
    assert "megatron_cpt.model.hybrid" in sys.modules
    return found


@pytest.mark.parametrize("per_layer_keys", [False, True])
@pytest.mark.parametrize("model", ["llama_tied", "gpt_neox", "gemma3", "qwen3_moe_mixed"])
def test_conversions_find_the_same_places(one_rank: Ranks, tmp_path: Path, model: str, per_layer_keys: bool) -> None:
    folder = write_fields(tmp_path / "hf", MODELS[model])
    [[gpt, hybrid]] = one_rank.call(places_of, folder=folder, per_layer_keys=per_layer_keys)
    assert gpt == hybrid
