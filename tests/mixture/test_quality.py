"""quality.py: scores to buckets, and the part of its source's weight that each has."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.schema import DataSettings, QualitySettings, SourceSettings
from megatron_cpt.mixture.blend import plan_blend
from megatron_cpt.mixture.phases import blend_streams
from megatron_cpt.mixture.quality import bucket_numbers, bucket_portions, open_source
from tests.corpus.datasets import write_dataset

BOUNDS = [0, 0.1, 0.3, 0.6, 1]


def scored(folder: Path, lengths: list[int], scores: list[float]) -> SourceSettings:
    """A source whose documents have scores, the lower the better, four buckets read 4, 2, 1 and 0 times."""
    prefix = write_dataset(folder / "law", lengths)
    np.save(f"{prefix}.ngram.npy", np.array(scores, np.float32))
    quality = QualitySettings(score="ngram", buckets=BOUNDS, epochs=[4, 2, 1, 0])
    return SourceSettings(paths=[str(prefix)], quality=quality)


def test_buckets_hold_the_best_tokens_first() -> None:
    scores = np.array([9.0, 1, 5, 3, 7, 2, 8, 4, 6, 10])
    numbers = bucket_numbers(scores, np.full(10, 100), BOUNDS)
    assert numbers.tolist() == [3, 0, 2, 1, 3, 1, 3, 2, 2, 3]


def test_a_long_document_is_in_the_bucket_of_its_middle() -> None:
    assert bucket_numbers(np.array([1.0, 2, 3]), np.array([10, 80, 10]), [0, 0.2, 1]).tolist() == [0, 1, 1]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=40), st.integers(1, 9))
def test_no_document_is_better_than_one_of_a_better_bucket(documents: list[tuple[int, int]], count: int) -> None:
    scores = np.array([score for score, _ in documents], np.float64)
    lengths = np.array([length for _, length in documents], np.int64)
    numbers = bucket_numbers(scores, lengths, [number / count for number in range(count + 1)])
    assert all(0 <= number < count for number in numbers)
    for better in range(count):
        worst = scores[numbers == better].max(initial=-1)
        assert (scores[numbers > better] >= worst).all()


def test_portions_by_epochs_shares_and_temperature() -> None:
    scores, lengths, buckets = np.array([1.0, 2, 3]), np.array([10, 20, 30]), np.array([0, 1, 1])
    one = {"score": "s", "buckets": [0, 0.2, 1]}
    assert bucket_portions(QualitySettings(**one, epochs=[4, 1]), scores, lengths, buckets) == (
        Fraction(40, 90),
        Fraction(50, 90),
    )
    assert bucket_portions(QualitySettings(**one, shares=[3, 1]), scores, lengths, buckets) == (
        Fraction(3, 4),
        Fraction(1, 4),
    )
    # Mean 7/3, variance 5/9 over tokens: z = 1.7889, 0.4472, -0.8944.
    first, second = bucket_portions(QualitySettings(**one, temperature=2.0), scores, lengths, buckets)
    weights = [10 * np.exp(0.894427), 20 * np.exp(0.223607) + 30 * np.exp(-0.447214)]
    assert float(first) == pytest.approx(weights[0] / sum(weights), rel=1e-5)
    assert first + second == 1


def test_a_source_becomes_streams_with_true_epochs_of_their_own(tmp_path: Path) -> None:
    source = scored(tmp_path, [100] * 100, [float(number * 37 % 100) for number in range(100)])
    streams, portions = open_source("law", source)
    assert {name: stream.tokens for name, stream in streams.items()} == {
        "law.1": 1000,
        "law.2": 2000,
        "law.3": 3000,
        "law.4": 4000,
    }
    best = streams["law.1"].documents()[0].documents.tolist()
    assert best == sorted(number for number in range(100) if number * 37 % 100 < 10)
    data = DataSettings(sequence_length=10, sources={"law": source})
    tokens = {name: stream.tokens for name, stream in streams.items()}
    blend = plan_blend(data, blend_streams(data, tokens, portions=portions), 1100, seed=1)
    assert blend.counts == (400, 400, 300, 0)
    assert blend.epochs == (4, 2, 1, 0)
    with pytest.raises(BadInput) as refusal:
        plan_blend(data, blend_streams(data, tokens, portions=portions), 1200, seed=1)
    assert "data.sources.law.quality.epochs = [4, 2, 1, 0]: this run reads" in str(refusal.value)


def test_buckets_are_packed_each_by_itself(tmp_path: Path) -> None:
    source = scored(tmp_path, [6, 3] * 50, [float(number) for number in range(100)])
    streams, portions = open_source("law", source, packed_length=10)
    plain, expected = open_source("law", source)
    assert portions == expected
    # A document of 6 tokens and one of 3 fill a sequence.
    assert [stream.tokens for stream in streams.values()] == [stream.tokens // 9 * 10 for stream in plain.values()]
    assert {stream.identity for stream in streams.values()}.isdisjoint(stream.identity for stream in plain.values())


def test_another_score_is_another_stream(tmp_path: Path) -> None:
    source = scored(tmp_path, [10] * 20, [float(number) for number in range(20)])
    before, _ = open_source("law", source)
    same, _ = open_source("law", source)
    np.save(tmp_path / "law.ngram.npy", np.arange(20, 0, -1).astype(np.float32))
    after, _ = open_source("law", source)
    assert before["law.1"].identity == same["law.1"].identity != after["law.1"].identity
    assert before["law.1"].read(0, 4).tolist() == [0, 1, 2, 3]
    assert after["law.1"].read(0, 4).tolist() == [180, 181, 182, 183]


@pytest.mark.parametrize(
    ("column", "complaint"),
    [
        (None, "is not there"),
        (np.array([1.0, np.nan]), "is not a number for 1 documents"),
        (np.array(["a", "b"]), "has no numbers"),
    ],
)
def test_scores_that_are_missing_or_no_numbers(tmp_path: Path, column: np.ndarray | None, complaint: str) -> None:
    source = scored(tmp_path, [10, 10], [1, 2])
    Path(tmp_path / "law.ngram.npy").unlink()
    if column is not None:
        np.save(tmp_path / "law.ngram.npy", column)
    with pytest.raises(BadInput, match=complaint):
        open_source("law", source)
