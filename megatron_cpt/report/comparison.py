"""The runs of a report beside each other: grouped over seeds, and beside a control."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_cpt.gap.arms import Arm, MeasuredRun, group_arms
from megatron_cpt.gap.control import ControlSplit, control_split
from megatron_cpt.gap.curves import LossCurve
from megatron_cpt.gap.differences import ArmDifference, arm_differences
from megatron_cpt.report.runs import ReportedRun


@dataclass(frozen=True)
class Comparison:
    """What several runs say together."""

    arms: list[Arm]
    """Runs that differ only in seed, as one."""
    differences: list[ArmDifference]
    """Every two arms, against the spread over seeds."""
    control: str | None
    """Name of the control run, where there is one."""
    splits: dict[str, dict[str, ControlSplit]]
    """{run: {general set: its rise, split by the control}}, for every run but the control."""


def compare(runs: Sequence[ReportedRun], control: ReportedRun | None = None) -> Comparison:
    """Compares runs; `control` is one of them."""
    arms = group_arms([MeasuredRun(run.name, run.config, run.validation) for run in runs])
    splits = {}
    if control is not None:
        curves = {curve.name: curve for curve, _ in control.validation}
        splits = {run.name: _splits(run, curves) for run in runs if run is not control}
    return Comparison(arms, arm_differences(arms), control.name if control is not None else None, splits)


def _splits(run: ReportedRun, control: Mapping[str, LossCurve]) -> dict[str, ControlSplit]:
    return {
        curve.name: control_split(curve, control.get(curve.name))
        for curve, _ in run.validation
        if curve.role != "domain"
    }
