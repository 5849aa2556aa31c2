"""What Megatron-Core 0.16.1's blended datasets do wrong, each looked for in our order and not found.

megatron/core/datasets/: gpt_dataset.py, blended_megatron_dataset_builder.py, helpers.cpp; and the sampler of
Megatron-LM's training scripts.
"""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_cpt.config.schema import DataSettings, SourceSettings
from megatron_cpt.data.loader import Slots, rank_indices
from megatron_cpt.mixture.blend import BlendPlan, plan_blend
from megatron_cpt.mixture.phases import blend_streams


def planned(tokens: dict[str, int], weights: dict[str, float], sequences: int, length: int = 10) -> BlendPlan:
    sources = {name: SourceSettings(paths=[name], weight=weight) for name, weight in weights.items()}
    data = DataSettings(sequence_length=length, sources=sources)
    return plan_blend(data, blend_streams(data, tokens), sequences, seed=7)


def read_of(blend: BlendPlan, source: int, sequences: int) -> Counter[int]:
    """How often each sequence of a source, counted modulo its epoch, is among the first of the run."""
    located = blend.order.locate(np.arange(sequences))
    size = blend.order.sources[source].tokens // blend.order.sequence_length
    return Counter((located.sequence[located.source == source] % size).tolist())


@pytest.mark.parametrize("epochs", [2, 3, 4, 8])
def test_epochs_are_not_joined_and_shuffled_together(epochs: int) -> None:
    """There, after as many sequences as one epoch holds, 25 to 34 % of the documents are unseen."""
    blend = planned({"a": 10_000}, {"a": 1}, 1000 * epochs)
    for epoch in range(1, epochs + 1):
        assert read_of(blend, 0, 1000 * epoch) == dict.fromkeys(range(1000), epoch)


def test_a_last_epoch_in_part_leaves_nothing_unseen() -> None:
    """There, a last epoch of 80 % or more is shuffled into the others: at 1.9 epochs, some documents are never seen."""
    times = read_of(planned({"a": 10_000}, {"a": 1}, 1900), 0, 1900)
    assert Counter(times.values()) == {2: 900, 1: 100}


def test_no_surplus_adds_an_epoch_or_changes_the_order() -> None:
    """There, 0.5 % are built for spare, which may add an epoch and shuffle it into the others."""
    exact, more = (planned({"a": 10_000}, {"a": 1}, count) for count in (2000, 2010))
    assert exact.epochs == (2.0,)
    indices = np.arange(2000)
    assert (exact.order.locate(indices).sequence == more.order.locate(indices).sequence).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 100), min_size=2, max_size=39), st.integers(50, 5000))
def test_no_source_is_asked_for_more_than_was_counted(weights: list[int], sequences: int) -> None:
    """There, one in five small blends wants more samples of some source than were built."""
    names = [f"s{number}" for number in range(len(weights))]
    blend = planned(dict.fromkeys(names, 10), dict(zip(names, map(float, weights), strict=True)), sequences)
    counted = np.bincount(blend.order.locate(np.arange(sequences)).source, minlength=len(weights))
    assert counted.tolist() == list(blend.counts)
    assert sum(blend.counts) == sequences


@pytest.mark.parametrize(("weights", "ranks"), [((1, 1), 2), ((3, 1), 4)])
def test_no_rank_is_tied_to_a_source(weights: tuple[int, int], ranks: int) -> None:
    """There, a periodic order and ranks that take every n-th sample give one rank all of a source."""
    blend = planned({"a": 10_000, "b": 10_000}, {"a": weights[0], "b": weights[1]}, 4000)
    due = weights[1] / sum(weights)
    for rank in range(ranks):
        slots = Slots(global_batch_size=40, micro_batch_size=1, data_rank=rank, data_size=ranks)
        mine = [rank_indices(slots, first, seed=7).ravel() for first in range(0, 4000, 40)]
        share = (blend.order.locate(np.concatenate(mine)).source == 1).mean()
        assert abs(share - due) < 0.08


def test_the_length_of_the_run_is_no_part_of_the_order() -> None:
    """There, the number of samples is hashed into the cache's key: another run length is another order."""
    short, long = (planned({"a": 3000, "b": 777}, {"a": 2, "b": 1}, count) for count in (100, 5000))
    indices = np.arange(100)
    assert (short.order.locate(indices).source == long.order.locate(indices).source).all()
    assert (short.order.locate(indices).sequence == long.order.locate(indices).sequence).all()
    assert short.fingerprint(100) == long.fingerprint(100)
