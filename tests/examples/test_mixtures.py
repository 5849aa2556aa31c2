"""The recipes of examples/mixtures: each is loaded as it stands and planned on datasets of the sizes that it speaks of.

The .bin files are sparse, and their indices list documents of a million tokens: planning reads no token.
"""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from megatron_cpt.config.checks import config_faults
from megatron_cpt.config.load import load_config
from megatron_cpt.corpus.indexed import HEADER, MAGIC, IndexedDataset, bin_path, idx_path
from megatron_cpt.corpus.manifest import Manifest, load_manifest, write_manifest
from megatron_cpt.corpus.selection import whole_dataset, write_selection
from megatron_cpt.planning.plan import RunPlan, make_plan
from tests.planning.small_run import write_model

RECIPES = Path(__file__).parents[2] / "examples/mixtures"
BILLION = 10**9
SIZES = {"domain": 100 * BILLION, "general": 600 * BILLION, "domain.validation": 10**7, "general.validation": 10**7}
DOCUMENT = 10**6


def replayed(plan: RunPlan) -> float:
    return sum(row.share for row in plan.blend.rows if row.role == "replay")


def epochs(plan: RunPlan) -> dict[str, float]:
    return {row.name: row.epochs for row in plan.blend.rows}


def ratio_is(share: float) -> Callable[[RunPlan], bool]:
    return lambda plan: abs(replayed(plan) - share) < 1e-4


def switches_at_a_fifth(plan: RunPlan) -> bool:
    first, second = plan.blend.phases
    switch = second.first_sequence / plan.blend.total_sequences
    return abs(switch - 0.711) < 0.001 and first.shares[0] == Fraction(9, 10) and second.shares[0] == Fraction(2, 5)


SHOWS: dict[str, Callable[[RunPlan], bool]] = {
    "subset_epochs": lambda plan: epochs(plan)["domain"] == pytest.approx(4, rel=1e-3),
    "best_subset": lambda plan: epochs(plan)["domain"] == pytest.approx(4, rel=1e-3),
    "pretraining_like_fixed": lambda plan: list(epochs(plan).values()) == pytest.approx([4, 4], rel=1e-3),
    "pretraining_like_dynamic": lambda plan: epochs(plan)["domain"] == pytest.approx(3.28, rel=1e-3),
    "replay_weak_shift": ratio_is(0.05),
    "replay_strong_shift": ratio_is(0.25),
    "two_blends": switches_at_a_fifth,
    "quality_weighted": lambda plan: [*epochs(plan).values()][:4] == pytest.approx([3.93, 1.96, 0.98, 0], abs=0.01),
}
"""What a recipe is there for, looked for in its plan."""


def write_sparse(prefix: Path, tokens: int) -> None:
    """A dataset of zeros that takes no room; its hash stands for content that nobody reads here."""
    lengths = np.array([*[DOCUMENT] * (tokens // DOCUMENT), tokens % DOCUMENT], np.int64)
    ends = np.cumsum(lengths)
    arrays = (lengths.astype("<i4"), ((ends - lengths) * 2).astype("<i8"), np.arange(len(lengths) + 1, dtype="<i8"))
    header = HEADER.pack(MAGIC, 1, 8, len(lengths), len(lengths) + 1)
    idx_path(prefix).write_bytes(header + b"".join(array.tobytes() for array in arrays))
    with bin_path(prefix).open("wb") as file:
        file.truncate(2 * tokens)
    dataset = IndexedDataset(prefix)
    manifest = Manifest(
        documents=dataset.documents,
        tokens=tokens,
        dtype="uint16",
        largest_id=0,
        data_sha256=sha256(prefix.name.encode()).hexdigest(),
        index_sha256=dataset.index_sha256,
    )
    write_manifest(prefix, manifest)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the recipes name: a model, datasets, scores and selections."""
    folder = tmp_path_factory.mktemp("mixtures")
    (folder / "data").mkdir()
    write_model(folder / "models/base", max_position_embeddings=4096)
    for name, tokens in SIZES.items():
        write_sparse(folder / "data" / name, tokens)
    np.save(folder / "data/domain.ngram.npy", np.arange(load_manifest(folder / "data/domain").documents, dtype="f4"))
    whole = whole_dataset(folder / "data/domain")
    count = int(np.searchsorted(np.cumsum(whole.lengths), 5 * BILLION)) + 1
    some = replace(whole, documents=whole.documents[:count], starts=whole.starts[:count], lengths=whole.lengths[:count])
    for name in ("random-5B", "best-5B"):
        write_selection(folder / "data" / name, [some], {})
    return folder


def test_each_recipe_is_looked_at() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml")} == set(SHOWS)


@pytest.mark.parametrize("name", SHOWS)
def test_a_recipe_is_loaded_and_planned(name: str, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    config = load_config(str(RECIPES / f"{name}.yaml"), [])
    assert config_faults(config) == []
    assert SHOWS[name](make_plan(config))
