"""plan.py: counts are the order's own, limits are held, and the fingerprint names what determines a prefix."""

from dataclasses import replace

import numpy as np
import pytest

from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.schema import DataSettings, SourceSettings
from megatron_cpt.mixture.blend import BlendPlan, differences, plan_blend
from megatron_cpt.mixture.order import Phase, SampleOrder, SourceStream
from megatron_cpt.mixture.phases import blend_streams

TOKENS = {"law": 10_000, "web": 1_000_000}


def settings(max_epochs: float | None = None, replay_ratio: float = 0.3) -> DataSettings:
    return DataSettings(
        sequence_length=100,
        replay_ratio=replay_ratio,
        sources={
            "law": SourceSettings(paths=["law"], max_epochs=max_epochs),
            "web": SourceSettings(paths=["web"], role="replay"),
        },
    )


def planned(
    data: DataSettings, tokens: dict[str, int], sequences: int, seed: int, identities: dict[str, str] | None = None
) -> BlendPlan:
    return plan_blend(data, blend_streams(data, tokens, identities), sequences, seed)


def blend_of(sequences: int = 1000, **changes: float) -> BlendPlan:
    return planned(settings(**changes), TOKENS, sequences, 7, {"law": "L", "web": "W"})


def test_the_table_is_counted_from_the_order() -> None:
    blend = blend_of()
    law, web = blend.rows
    assert blend.sources == ("law", "web")
    assert blend.counts == (700, 300)
    assert (law.sequences, law.tokens, law.share, law.epochs) == (700, 70_000, 0.7, 7.0)
    assert (web.role, web.due_share, web.epochs) == ("replay", 0.3, 0.03)
    assert web.effective_unique_tokens == 30_000
    assert law.effective_unique_tokens == pytest.approx(59_686.7, abs=0.1)
    sources = blend.order.locate(np.arange(137)).source
    assert blend.source_sequences(137) == {"law": int((sources == 0).sum()), "web": int((sources == 1).sum())}
    assert blend.source_epochs(1000) == {"law": 7.0, "web": 0.03}


def test_more_epochs_than_allowed_are_refused_with_numbers_and_ways_out() -> None:
    assert blend_of(max_epochs=7).epochs[0] == 7
    with pytest.raises(BadInput) as refusal:
        blend_of(max_epochs=4)
    assert str(refusal.value) == (
        "data.sources.law.max_epochs = 4: this run reads 70,000 tokens of a source of 10,000, 7.00 epochs. "
        "Train on at most 57,200 tokens; or, in a run as long as this, give it at most 40.00 % of the tokens "
        "(now 70.00 %) by weight or data.replay_ratio; or set data.when_exhausted; or raise max_epochs to 7, "
        "or add text to the source."
    )


def test_the_ways_out_work() -> None:
    assert blend_of(sequences=572, max_epochs=4).counts[0] == 400
    assert blend_of(max_epochs=4, replay_ratio=0.6).counts[0] == 400
    with pytest.raises(BadInput):
        blend_of(sequences=573, max_epochs=4)


def test_a_limit_is_not_passed_by_a_source_that_is_shorter_than_a_sequence() -> None:
    with pytest.raises(BadInput) as refusal:
        planned(settings(max_epochs=1), {"law": 40, "web": TOKENS["web"]}, 1000, seed=7)
    assert str(refusal.value) == (
        "data.sources.law.max_epochs = 1: one sequence of 100 tokens is 2.50 passes over this source of 40 tokens. "
        "Join it with another source (list its paths there), take it out, set data.when_exhausted, or raise max_epochs "
        "to 2.5."
    )
    # 1.5 passes over 10,050 tokens are 150 whole sequences and a part of one.
    free = replace(settings(max_epochs=1.5), when_exhausted="redistribute", replay_ratio=None)
    assert planned(free, TOKENS | {"law": 10_050}, 1000, seed=7).counts[0] == 150


def test_all_limits_that_are_broken_are_named_at_once() -> None:
    data = settings(max_epochs=1)
    both = replace(data, sources={name: replace(source, max_epochs=0.01) for name, source in data.sources.items()})
    with pytest.raises(BadInput) as refusal:
        planned(both, TOKENS, 1000, seed=7)
    assert len(refusal.value.faults) == 2


def test_a_source_without_tokens_is_refused_only_if_it_is_to_be_read() -> None:
    with pytest.raises(BadInput, match=r"data.sources.web: its datasets hold no tokens"):
        planned(settings(), {"law": 10_000, "web": 0}, 100, seed=7)


def test_a_longer_run_and_listing_order_leave_the_fingerprint() -> None:
    blend, data = blend_of(), settings()
    listed_otherwise = replace(data, sources=dict(reversed(data.sources.items())))
    other = planned(listed_otherwise, TOKENS, 5000, 7, {"law": "L", "web": "W"})
    assert other.sources == ("web", "law")
    assert other.fingerprint(400) == blend.fingerprint(400) == blend.fingerprint(1000)


def test_an_appended_phase_and_its_new_source_leave_the_fingerprint_of_what_was_before() -> None:
    before = blend_of()
    order = SampleOrder(
        [*before.order.sources, SourceStream("books", 500)],
        [Phase(0, (7, 3, 0)), Phase(400, (1, 1, 1))],
        100,
        seed=7,
    )
    books = replace(before.streams[1], name="books", tokens=500, identity="B")
    after = replace(before, order=order, streams=(*before.streams, books))
    assert after.fingerprint(400) == before.fingerprint(400)
    assert after.fingerprint(401) != before.fingerprint(401)


def test_whatever_changes_the_order_changes_the_fingerprint_and_is_named() -> None:
    blend = blend_of()
    tokens = {**TOKENS, "law": 9_999}
    changed = {
        "seed: 7 before, 8 now": planned(settings(), TOKENS, 1000, 8, {"law": "L", "web": "W"}),
        "sources.web.identity: W before, V now": planned(settings(), TOKENS, 1000, 7, {"law": "L", "web": "V"}),
        "sources.law.tokens: 10000 before, 9999 now": planned(settings(), tokens, 1000, 7, {"law": "L", "web": "W"}),
        "phases.0.weights.law: 7 before, 2 now": blend_of(replay_ratio=0.6),
    }
    for line, other in changed.items():
        assert other.fingerprint(10) != blend.fingerprint(10)
        assert line in differences(blend.describe(10), other.describe(10))
    assert differences(blend.describe(10), blend.describe(900)) == []


def test_golden_fingerprint() -> None:
    assert blend_of().fingerprint(1000) == "3dcfc4f5a200936274f75ff27ed390644e53e3f738393e6ccad81486413009ac"
