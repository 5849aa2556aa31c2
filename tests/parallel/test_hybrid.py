"""HybridModel in the place of GPTModel: the same bits, and checkpoints that each reads of the other."""

from pathlib import Path

import pytest

from tests.parallel import matrix
from tests.ranks import Ranks
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
