"""The gap while a run goes on."""

import pytest

from megatron_cpt.gap.curves import loss_curves
from megatron_cpt.gap.figures import RunningGap, gap_figures


def mark(step: int, loss: float | None, name: str = "general") -> dict:
    return {
        "kind": "validation", "step": step, "tokens": step * 10, "set": name, "role": "general", "identity": "x",
        "loss": loss,
    }  # fmt: skip


def test_the_last_figures_are_those_of_the_run() -> None:
    losses = [(0, 3.0), (1, 3.4), (2, 3.2), (4, 2.9)]
    gap = RunningGap()
    assert gap.add(mark(*losses[0])) == {}
    assert gap.add(mark(0, 1.0, "other")) == {}
    assert gap.add(mark(*losses[1])) == pytest.approx({"change": 0.4, "depth": 0.4, "transient": 0.0, "area": 2.0})
    gap.add(mark(*losses[2]))
    found = gap.add(mark(*losses[3]))
    whole = gap_figures(loss_curves([mark(*each) for each in losses])[0])
    assert (found["depth"], found["transient"], found["area"]) == (whole.depth, whole.transient, whole.area)
    assert found["change"] == whole.final
    assert gap.add(mark(5, None)) == {}
    # What comes after has all figures again, but for the integral over what is not known.
    assert gap.add(mark(6, 3.1)) == pytest.approx({"change": 0.1, "depth": 0.4, "transient": 0.3})
