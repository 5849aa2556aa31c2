"""The nine properties of the order on random plans: one source to sixty, sizes from nothing to 10^12 sequences, zero
weights, phases at odd places, limits reached on the way."""

import tracemalloc
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.schema import DataSettings, PhaseSettings, SourceSettings
from megatron_cpt.config.units import Duration
from megatron_cpt.corpus.stream import TokenStream
from megatron_cpt.data.loader import Slots, TrainingData
from megatron_cpt.mixture.blend import BlendPlan, plan_blend
from megatron_cpt.mixture.order import Phase, SampleOrder, SourceStream
from megatron_cpt.mixture.phases import blend_streams
from tests.corpus.datasets import write_dataset

HUGE = 10**12
"""Sequences."""
WINDOW = 64
"""Sequences looked at one by one around each place of interest."""


@dataclass(frozen=True)
class Case:
    """A configuration of a run, and its sources."""

    data: DataSettings
    tokens: dict[str, int]
    step: int
    steps: int

    def plan(self, steps: int | None = None, **changes: object) -> BlendPlan:
        """The blend of the case, or of one that differs in length or settings."""
        data = replace(self.data, **changes)  # type: ignore[arg-type]
        sequences = (steps or self.steps) * self.step
        return plan_blend(data, blend_streams(data, self.tokens), sequences, 11, step_sequences=self.step)


@st.composite
def cases(draw: st.DrawFn, limits: bool = True) -> Case:
    """Two unlimited sources or one, and up to sixty more, any of which may have a limit or no weight."""
    length, step = draw(st.integers(1, 4096)), draw(st.integers(1, 512))
    more = draw(st.integers(0, 60))
    roles = (["domain", "replay"] if more or draw(st.booleans()) else ["domain"]) + [
        draw(st.sampled_from(["domain", "replay"])) for _ in range(more)
    ]
    sizes = st.one_of(st.integers(1, 3 * length), st.integers(1, 10**6), st.integers(1, HUGE * length))
    steps = max(4, draw(st.one_of(st.integers(4, 200), st.integers(4, HUGE // step))))
    sources = {
        f"s{number}": SourceSettings(
            paths=["p"],
            role=role,  # type: ignore[arg-type]
            weight=draw(st.integers(1, 9) if number < 2 else st.integers(0, 9)),
            max_epochs=draw(st.sampled_from([None, 0.5, 3])) if limits and number > 1 else None,
        )
        for number, role in enumerate(roles)
    }
    ratio = draw(st.sampled_from([None, 0.05, 0.3])) if "replay" in roles else None
    starts = [0, *sorted(draw(st.sets(st.integers(1, steps - 1), max_size=3)))]
    phases = [
        PhaseSettings(
            from_tokens=Duration(start, "steps"),
            replay_ratio=draw(st.sampled_from([None, 0.5])) if ratio else None,
            weights={name: draw(st.integers(0, 5)) for name in list(sources)[2:5]},
        )
        for start in starts
    ]
    data = DataSettings(
        sequence_length=length, replay_ratio=ratio, sources=sources, phases=phases, when_exhausted="redistribute"
    )
    return Case(data, {name: draw(sizes) for name in sources}, step, steps)


def places(plan: BlendPlan) -> list[int]:
    """Where to look: at both sides of every phase's beginning, in the middle, and at the end."""
    edges = [phase.first_sequence for phase in plan.phases]
    found = {max(0, edge - WINDOW // 2) for edge in [*edges, plan.total_sequences // 2, plan.total_sequences - WINDOW]}
    return sorted(found)[:12]


@settings(max_examples=15, deadline=None)
@given(cases())
def test_exact_every_prefix_of_a_phase_is_within_two_of_the_due_shares(case: Case) -> None:
    plan = case.plan()
    ends = [*(phase.first_sequence for phase in plan.phases[1:]), plan.total_sequences]
    for phase, end in zip(plan.phases, ends, strict=True):
        before = plan.order.counts(phase.first_sequence)
        for sequences in {1, (end - phase.first_sequence) // 3, end - phase.first_sequence}:
            given_ = plan.order.counts(phase.first_sequence + sequences) - before
            for count, share in zip(given_.tolist(), phase.shares, strict=True):
                # Integer weights stand for shares to 1e-8 where a phase has very many different ones.
                assert abs(count - sequences * share) < 2 + Fraction(sequences, 10**8)
    for first in places(plan):
        window = plan.order.locate(np.arange(first, first + WINDOW)).source
        counted = np.bincount(window, minlength=len(plan.sources))
        assert (plan.order.counts(first + WINDOW) - plan.order.counts(first) == counted).all()


@settings(max_examples=15, deadline=None)
@given(cases())
def test_true_epochs_every_sequence_is_of_the_epoch_that_is_due_and_comes_once(case: Case) -> None:
    plan, length = case.plan(), case.data.sequence_length
    for first in places(plan):
        located = plan.order.locate(np.arange(first, first + WINDOW))
        given_ = plan.order.counts(first)
        rows = zip(located.source.tolist(), located.epoch.tolist(), located.sequence.tolist(), strict=True)
        seen = set()
        for source, epoch, sequence in rows:
            tokens = plan.streams[source].tokens
            assert epoch == int(given_[source]) * length // tokens
            assert epoch * tokens <= sequence * length < (epoch + 1) * tokens
            assert (source, sequence) not in seen
            seen.add((source, sequence))
            given_[source] += 1


@settings(max_examples=15, deadline=None)
@given(cases(), st.integers(1, 10**6))
def test_prefix_stable_a_longer_run_begins_with_the_shorter(case: Case, part: int) -> None:
    long = case.plan()
    steps = max(1, case.steps * part // 10**6)
    short = case.plan(steps)
    assert short.fingerprint(steps * case.step) == long.fingerprint(steps * case.step)
    indices = np.arange(max(0, steps * case.step - WINDOW), steps * case.step)
    ours, theirs = short.order.locate(indices), long.order.locate(indices)
    assert (ours.source == theirs.source).all() and (ours.sequence == theirs.sequence).all()


def test_index_free_a_thousand_sources_of_ten_billion_sequences_take_megabytes() -> None:
    sources = [SourceStream(f"s{number}", 10**7 * 4096 + number) for number in range(1000)]
    tracemalloc.start()
    order = SampleOrder(sources, [Phase(0, tuple(range(1, 1001)))], 4096, 1)
    order.locate(np.arange(10**10 - 256, 10**10))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4 * 2**20


@settings(max_examples=15, deadline=None)
@given(cases(limits=False), st.integers(1, 9))
def test_changeable_an_appended_phase_goes_on_where_every_source_stood(case: Case, weight: int) -> None:
    appended = PhaseSettings(from_tokens=Duration(case.steps, "steps"), weights={"s0": float(weight)})
    before, after = case.plan(), case.plan(case.steps + 5, phases=[*case.data.phases, appended])
    trained = before.total_sequences
    assert after.fingerprint(trained) == before.fingerprint(trained)
    located = after.order.locate(np.arange(trained, trained + WINDOW))
    given_ = before.order.counts(trained)
    for source, epoch in zip(located.source.tolist(), located.epoch.tolist(), strict=True):
        assert epoch == int(given_[source]) * case.data.sequence_length // before.streams[source].tokens
        given_[source] += 1


@settings(max_examples=15, deadline=None)
@given(cases(limits=False), st.data())
def test_guarded_what_was_read_cannot_change_unseen(case: Case, data: st.DataObject) -> None:
    plan, read = case.plan(), case.step
    name = data.draw(st.sampled_from(plan.sources))
    shorter = {**case.tokens, name: case.tokens[name] + 1}
    changed = replace(case, tokens=shorter).plan().fingerprint(read) != plan.fingerprint(read)
    assert changed == (plan.phases[0].shares[plan.sources.index(name)] > 0)


@settings(max_examples=15, deadline=None)
@given(cases())
def test_capped_no_source_gives_more_than_it_may(case: Case) -> None:
    plan = case.plan()
    assert all(count <= stream.max_sequences for count, stream in zip(plan.counts, plan.streams, strict=True))
    free = {name: replace(source, max_epochs=None) for name, source in case.data.sources.items()}
    wanted = case.plan(sources=free, when_exhausted="error").counts
    beyond = [stream.name for count, stream in zip(wanted, plan.streams, strict=True) if count > stream.max_sequences]
    if not beyond:
        assert case.plan(when_exhausted="error").counts == wanted
        return
    with pytest.raises(BadInput) as refusal:
        case.plan(when_exhausted="error")
    assert [fault.value.split(".")[2] for fault in refusal.value.faults] == beyond


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> list[TokenStream]:
    folder = tmp_path_factory.mktemp("streams")
    lengths = [[50, 7, 300], [3], [1000]]
    return [
        TokenStream([write_dataset(Path(folder / f"s{number}"), each, 10_000 * number)])
        for number, each in enumerate(lengths)
    ]


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)), min_size=2, max_size=4),
    st.integers(0, 3),
)
def test_spread_and_accounted_a_run_that_changes_its_layout_reads_what_was_due(
    streams: list[TokenStream], layouts: list[tuple[int, int, int]], seed: int
) -> None:
    """Each layout (replicas, micro batch, micro batches a replica) trains two steps, as a chain of resumes would."""
    order = SampleOrder(
        [SourceStream(f"s{number}", stream.tokens) for number, stream in enumerate(streams)],
        [Phase(0, (5, 1, 4)), Phase(7, (1, 0, 3))],
        8,
        seed,
    )
    consumed = [0]
    for replicas, micro, batches in layouts:
        for _ in range(2):
            size = replicas * micro * batches
            ranks = [
                TrainingData(order, streams, Slots(size, micro, rank, replicas), 8, seed) for rank in range(replicas)
            ]
            read = [batch for rank in ranks for batch in rank.global_batch(consumed[-1], torch.device("cpu"))]
            consumed.append(consumed[-1] + size)
            place = order.locate(np.arange(*consumed[-2:]))
            due = sorted(
                (source, *streams[source].read(8 * sequence, 8).tolist())
                for source, sequence in zip(place.source.tolist(), place.sequence.tolist(), strict=True)
            )
            rows = [
                (source, *tokens)
                for batch in read
                for source, tokens in zip(batch.sources.tolist(), batch.tokens.tolist(), strict=True)
            ]
            assert sorted(rows) == due
    for first, last in pairwise(consumed):
        assert (order.counts(last) - order.counts(first)).sum() == last - first
