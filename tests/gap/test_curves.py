"""Validation records into curves."""

import numpy as np
import pytest

from megatron_cpt.config.errors import IntegrityFault
from megatron_cpt.gap.curves import loss_curves
from megatron_cpt.gap.figures import gap_figures


def record(step: int, name: str = "general", role: str = "general", **changes) -> dict:
    return {
        "kind": "validation", "step": step, "tokens": step * 100, "set": name, "role": role,
        "loss": 4.0 + step, "identity": "a", "sequence_nats": [8.0, 4.0], "sequence_tokens": [2, 1],
    } | changes  # fmt: skip


def test_general_sets_come_first_and_other_records_are_passed_over():
    records = [
        record(0, "code", "domain"),
        {"kind": "train", "step": 1},
        record(0),
        record(2),
        record(2, "code", "domain"),
    ]
    general, code = loss_curves(records)
    assert (general.name, general.role, code.name, code.role) == ("general", "general", "code", "domain")
    assert general.steps.tolist() == [0, 2]
    assert general.tokens.tolist() == [0, 200]
    assert general.losses.tolist() == [4.0, 6.0]
    assert general.sequence_nats is not None and general.sequence_nats.shape == (2, 2)
    assert general.has_baseline


def test_a_changed_set_keeps_its_baseline_and_the_marks_after_are_a_curve_of_their_own():
    marks = [record(0), record(1), record(2, identity="b"), record(3, identity="b"), record(4, identity="c"), record(5)]
    (curve,) = loss_curves(marks)
    assert curve.steps.tolist() == [0, 1, 5]
    assert curve.later is not None and curve.later.later is not None
    assert (curve.later.steps.tolist(), curve.later.later.steps.tolist()) == ([2, 3], [4])
    assert gap_figures(curve).changed_tokens == 200


def test_a_mark_without_sequences_leaves_none():
    (curve,) = loss_curves([record(0), record(1, sequence_nats=None)])
    assert curve.sequence_nats is None and curve.sequence_tokens is None


def test_a_loss_that_was_not_finite_is_not_a_number():
    (curve,) = loss_curves([record(0), record(1, loss=None)])
    assert np.isnan(curve.losses[1])


def test_broken_records_are_named():
    lacking = record(0)
    del lacking["tokens"]
    with pytest.raises(IntegrityFault, match="tokens"):
        loss_curves([lacking])
    with pytest.raises(IntegrityFault, match="other token counts"):
        loss_curves([record(0), record(1, sequence_tokens=[1, 2])])
    with pytest.raises(IntegrityFault, match="sequences missing"):
        loss_curves([record(0), record(1, sequence_nats=[1.0])])
