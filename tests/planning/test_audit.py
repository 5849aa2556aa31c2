"""audit.py against what Megatron-Core's own builder makes of the same datasets."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from megatron.core.datasets.blended_megatron_dataset_builder import (
    BlendedMegatronDatasetBuilder,
    _get_size_per_split_per_dataset,
)
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.utils import normalize

from megatron_cpt.config.errors import BadInput, IntegrityFault
from megatron_cpt.corpus.indexed import IndexedWriter
from megatron_cpt.planning.audit import SourceAudit, audit, audit_lines, epochs_for, split_spans

LENGTH = 16


def write(prefix: Path, documents: int, tokens: int) -> str:
    """Documents of equal length whose tokens are their number."""
    with IndexedWriter(prefix, np.int32) as writer:
        for number in range(documents):
            writer.add(np.full(tokens, number))
    return str(prefix)


def stock(prefixes: list[str], weights: list[float] | None, samples: int, split: str = "1,0,0", seed: int = 1) -> Any:
    """Megatron-Core's blend, built without a cache."""
    config = GPTDatasetConfig(
        random_seed=seed,
        sequence_length=LENGTH,
        blend=(prefixes, weights),
        split=split,
        tokenizer=SimpleNamespace(vocab_size=100_000, eod=0, unique_identifiers={"class": "test"}),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    return BlendedMegatronDatasetBuilder(GPTDataset, [samples, 0, 0], lambda: True, config).build()[0]


def read_documents(blended: Any, source: int, share: float) -> Counter[int]:
    """How often the run reads each document of a source in a share of it, in whole documents' worth of tokens."""
    counts: Counter[int] = Counter()
    for index in range(round(share * len(blended))):
        if blended.dataset_index[index] == source:
            sample = blended[index]
            counts.update(sample["tokens"].tolist())
    return counts


@pytest.fixture(scope="module")
def prefixes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("audit")
    return [write(folder / "small", 400, LENGTH), write(folder / "large", 3000, LENGTH)]


@pytest.mark.parametrize("samples", [100, 790, 800, 1000, 1200, 1777, 2000, 4000])
def test_epochs_and_samples_are_those_of_the_builder(prefixes: list[str], samples: int) -> None:
    weights = [0.5, 0.5]
    blended = stock(prefixes, weights, samples)
    for row, dataset in zip(audit(prefixes, weights, samples, LENGTH), blended.datasets, strict=True):
        documents = dataset.indices.size
        assert row.built == dataset.num_samples
        assert row.available == len(dataset)
        assert row.epochs == dataset.document_index.size // documents
        last = dataset.document_index[row.joined_epochs * documents :]
        assert len(set(last.tolist())) == last.size
        joined = dataset.shuffle_index[: row.joined_samples]
        assert sorted(joined.tolist()) == list(range(row.joined_samples))
    assert len(blended) == sum(row.requested for row in audit(prefixes, weights, samples, LENGTH))


def test_the_training_split_is_rounded_as_theirs(prefixes: list[str]) -> None:
    blended = stock(prefixes, [1.0, 3.0], 500, split="969,31,0")
    rows = audit(prefixes, [1, 3], 500, LENGTH, split_spans("969,31,0"))
    assert [row.tokens for row in rows] == [int(dataset.indices.size) * LENGTH for dataset in blended.datasets]


@pytest.mark.parametrize(("samples", "share"), [(800, 0.5), (1600, 0.5), (1600, 0.25), (3200, 0.25), (1600, 1.0)])
def test_unseen_and_repeated_documents_are_as_expected(prefixes: list[str], samples: int, share: float) -> None:
    """400 documents: a standard error of the unseen share is below 2.5 %."""
    row = audit(prefixes, [0.5, 0.5], samples, LENGTH)[0]
    counts = read_documents(stock(prefixes, [0.5, 0.5], samples), 0, share)
    passes = np.array([counts[number] / LENGTH for number in range(400)])
    assert row.unseen(share) == pytest.approx(np.mean(np.maximum(0, 1 - passes)), abs=0.08)
    assert row.repeated(share) == pytest.approx(np.mean(np.clip(passes - 1, 0, 1)), abs=0.08)


def test_a_single_prefix_has_no_surplus_and_several_without_weights_are_read_once(
    prefixes: list[str], tmp_path: Path
) -> None:
    hundred = write(tmp_path / "hundred", 100, LENGTH)
    [row] = audit([hundred], None, 99, LENGTH)
    assert (row.requested, row.built, row.epochs) == (99, 99, 1)
    dataset = stock([hundred], None, 99)
    assert (dataset.num_samples, dataset.document_index.size) == (99, 100)
    [weighted] = audit([hundred], [1], 99, LENGTH)
    assert (weighted.built, weighted.epochs) == (100, 2)
    for samples in (500, 10_000):
        blended = stock(prefixes, None, samples)
        rows = audit(prefixes, None, samples, LENGTH)
        assert [row.available for row in rows] == [len(dataset) for dataset in blended.datasets]
        assert sum(row.requested for row in rows) == len(blended)
        drawn = np.bincount(blended.dataset_index)
        assert [row.requested for row in rows] == pytest.approx(drawn.tolist(), abs=1)


def test_shares_are_rounded_as_numpy_rounds_them(prefixes: list[str], tmp_path: Path) -> None:
    """Ten equal weights, and thirds: the product with the samples lies on a whole number but for rounding."""
    names = [write(tmp_path / str(number), 3, LENGTH) for number in range(11)]
    random = np.random.default_rng(5)
    for weights in ([0.1] * 11, [1 / 3] * 11, *(random.integers(1, 40, 11) / 10 for _ in range(300))):
        samples = int(random.integers(1, 200)) * 11
        shares = normalize(list(weights))
        target = [one[0] for one in _get_size_per_split_per_dataset(shares, [samples, 0, 0])]
        assert [row.requested for row in audit(names, list(weights), samples, LENGTH)] == target


def test_a_split_without_a_document_is_refused(tmp_path: Path) -> None:
    hundred = write(tmp_path / "hundred", 100, LENGTH)
    with pytest.raises(BadInput, match="hundred: its test split has no tokens: stock Megatron-LM counts epochs"):
        audit([hundred], None, 50, LENGTH, split_spans("969,30,1"))
    assert audit([hundred], None, 50, LENGTH, split_spans("96,3,1"))[0].tokens == 96 * LENGTH
    assert audit([hundred], None, 50, LENGTH, split_spans("99,1"))[0].tokens == 99 * LENGTH


@pytest.mark.parametrize(
    ("documents", "samples", "share"), [([40], 7, 0.5), ([7, 60, 16], 9, 0.5), ([5, 3], 12, 0.25), ([90] * 4, 30, 0.75)]
)
def test_of_few_documents_too_the_expectations_hold(
    tmp_path: Path, documents: list[int], samples: int, share: float
) -> None:
    """Against the mean over the builder's own shuffles."""
    prefix = str(tmp_path / "few")
    with IndexedWriter(prefix, np.int32) as writer:
        writer.add_many(np.arange(sum(documents)), np.array(documents))
    unseen, repeated = [], []
    for seed in range(1, 31):
        blended = stock([prefix], [1.0], samples, seed=seed)
        counts = np.zeros(sum(documents), np.int64)
        for index in range(round(share * samples)):
            np.add.at(counts, blended[index]["tokens"].numpy(), 1)
        unseen.append(np.mean(counts == 0))
        repeated.append(np.mean(counts >= 2))
    row = audit([prefix], [1], samples, LENGTH)[0]
    assert row.unseen(share) == pytest.approx(np.mean(unseen), abs=0.07)
    assert row.repeated(share) == pytest.approx(np.mean(repeated), abs=0.07)


def row_of(**changes: Any) -> SourceAudit:
    return audit([changes["prefix"]], [1], changes["samples"], LENGTH)[0]


def test_an_exact_epoch_is_pushed_to_another_by_the_surplus(prefixes: list[str]) -> None:
    row = row_of(prefix=prefixes[0], samples=398)
    assert (row.passes, row.epochs, row.epochs_by_surplus) == (0.995, 2, 1)
    assert any("the surplus of 0.5% alone adds an epoch: 2 are built where 1" in line for line in audit_lines([row]))
    assert row_of(prefix=prefixes[0], samples=390).epochs_by_surplus == 0


def test_literal_figures_of_joined_epochs() -> None:
    row = SourceAudit("a", 1.0, 1600, 198, 199, 199, 2, 2, 199, LENGTH)
    assert row.unseen(0.5) == pytest.approx((1 - 99 / 199) ** 2)
    assert row.repeated(0.5) == pytest.approx((99 / 199) ** 2)
    assert row.ours_unseen(0.25) == pytest.approx(1 - 0.25 * 1.98)
    assert row.ours_unseen(0.6) == 0
    assert epochs_for(100, 16, 1600) == 2
    assert epochs_for(99, 16, 1600) == 1


def test_what_stock_megatron_cannot_take(prefixes: list[str], tmp_path: Path) -> None:
    empty = write(tmp_path / "empty", 0, 1)
    with pytest.raises(BadInput) as refusal:
        audit([*prefixes, empty, str(tmp_path / "gone")], [1, 0, 1, 1], 100, LENGTH)
    said = [str(fault) for fault in refusal.value.faults]
    assert [line.split(":")[0] for line in said] == [prefixes[1], empty, f"{tmp_path}/gone.idx"]
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(BadInput, match="finite weights above 0 alone"):
            audit(prefixes[:1], [weight], 100, LENGTH)
    for samples, length in ((0, LENGTH), (100, 0)):
        with pytest.raises(BadInput, match="must be 1 or more"):
            audit(prefixes[:1], [1], samples, length)
    Path(tmp_path / "other.idx").write_bytes(b"something else entirely, long enough for a header")
    with pytest.raises(IntegrityFault, match="is not a Megatron index"):
        audit([str(tmp_path / "other")], [1], 100, LENGTH)


def test_only_indices_are_read(prefixes: list[str], tmp_path: Path) -> None:
    (tmp_path / "alone.idx").write_bytes(Path(f"{prefixes[0]}.idx").read_bytes())
    assert audit([str(tmp_path / "alone")], [1], 100, LENGTH)[0].tokens == 400 * LENGTH
