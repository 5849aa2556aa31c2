"""What gap figures say: gap.json for programs, one line a run for people."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from megatron_cpt.config.units import short_count
from megatron_cpt.gap.compare import Arm, ArmDifference, ControlSplit
from megatron_cpt.gap.curves import LossCurve
from megatron_cpt.gap.figures import BAND, GapFigures, Recovery, continual_measures

_UNITS = {
    "baseline, depth, final, improvement, transient, first_rise, *_standard_error": "nats per token",
    "not_finite": "evaluations whose loss is not finite, which no figure uses; `area` is null then",
    "*_tokens": "tokens trained since the start of the run",
    "area": "nats per token times tokens trained",
    "tasks.*": "as of a set; with unit `share of questions answered wrongly` the figures are of 1 - accuracy",
    "continual": "accuracies, 0 to 1 (arXiv:2205.13452); windowed_*: by the width of the window in evaluations",
    "p_value": "probability; of a run or a split: family-wise over the evaluations of the set; of a difference "
    "between arms: of this pair alone, `adjusted_p_value` over all pairs",
    "mean, sd, runs": "over the seeds of an arm (sd: n - 1), with the runs that have the figure",
    "rewarming, shift": "nats per token: the control's rise, and what the run rose beyond it",
    "null": "not recorded, or not applicable; `recovery_tokens` is null unless `recovery` is `recovered`",
}
"""The units of gap.json, by key."""


@dataclass(frozen=True)
class MeasuredFolder:
    """A run as gap.json names it."""

    name: str
    """Its name in the report."""
    folder: str
    """Where it was read."""
    sets: Sequence[tuple[LossCurve, GapFigures]]
    """Its validation sets with their figures."""
    tasks: Sequence[tuple[LossCurve, GapFigures]] = ()
    """Its downstream tasks, likewise."""


def gap_document(
    runs: Sequence[MeasuredFolder],
    arms: Sequence[Arm] = (),
    differences: Sequence[ArmDifference] = (),
    control: str | None = None,
    splits: Mapping[str, Mapping[str, ControlSplit]] | None = None,
) -> dict[str, Any]:
    """The content of gap.json.

    Args:
        arms, differences: the runs grouped over seeds, and every two arms compared.
        control: name of the control run, where there is one.
        splits: {run: {set: the rise split by the control}}.
    """
    return {
        "units": _UNITS,
        "runs": [
            {
                "name": run.name,
                "folder": run.folder,
                "sets": {curve.name: _figures(curve, figures) for curve, figures in run.sets},
                "tasks": {curve.name: {"unit": curve.unit, **_figures(curve, figures)} for curve, figures in run.tasks},
                "continual": asdict(continual_measures([curve for curve, _ in run.tasks])),
            }
            for run in runs
        ],
        "arms": [asdict(arm) for arm in arms],
        "differences": [asdict(difference) for difference in differences],
        "control": control,
        "splits": {run: {name: asdict(split) for name, split in sets.items()} for run, sets in (splits or {}).items()},
    }


def _figures(curve: LossCurve, figures: GapFigures) -> dict[str, Any]:
    return {"role": curve.role, "identity": curve.identity, **asdict(figures)}


def summary_line(run: str, sets: Mapping[str, tuple[str, GapFigures]], ended: bool = True) -> str:
    """One line on a run, from {set: (role, figures)}. `ended`: whether it has come to its end.

    `naive: general rose 0.541 nats at 512K tokens, 0.002 of it transient, not recovered; code gained
    1.982 nats`
    """
    if not sets:
        return f"{run}: no validation set was evaluated"
    return f"{run}: " + "; ".join(_set_summary(name, *sets[name], ended) for name in sets)


def end_words(ended: bool) -> str:
    """What a run's last figures are of: its end, or how far it has come."""
    return "at the end" if ended else "so far"


def _set_summary(name: str, role: str, figures: GapFigures, ended: bool) -> str:
    if figures.depth is None:
        return f"{name} {figures.missing}"
    if figures.changed_tokens is not None:
        alike = replace(figures, changed_tokens=None)
        return f"{_set_summary(name, role, alike, ended)} ({changed_words(figures.changed_tokens)})"
    if figures.not_finite is not None:
        alike = replace(figures, not_finite=None)
        return f"{_set_summary(name, role, alike, ended)} ({not_finite_words(figures.not_finite)})"
    if figures.improvement is None or figures.transient is None:
        rose = f"rose {figures.depth:.3f} nats at {count_words(figures.depth_tokens)} tokens"
        return f"{name} {'did not rise' if is_flat(figures) else rose}, {NO_LAST_LOSS}"
    if role == "domain":
        verb = "gained" if figures.improvement >= 0 else "lost"
        return f"{name} {verb} {abs(figures.improvement):.3f} nats"
    if is_flat(figures) and is_better(figures):
        return f"{name} improved {figures.improvement:.3f} nats, {recovery_words(figures)}"
    if is_flat(figures):
        return f"{name} stayed at its baseline (largest rise {figures.depth:.3f} nats)"
    doubt = " (within evaluation noise)" if figures.significant is False else ""
    return (
        f"{name} rose {figures.depth:.3f} nats{doubt} at {count_words(figures.depth_tokens)} tokens, "
        f"{figures.transient:.3f} of it transient, {recovery_words(figures)}, "
        f"{-figures.improvement:+.3f} {end_words(ended)}{first_rise_words(figures)}"
    )


NO_LAST_LOSS = "its last loss is not finite"
"""What is said in place of figures at the end."""


def not_finite_words(places: str) -> str:
    """That losses are not finite: `not finite at step 10, which is not in these figures`."""
    return f"not finite at {places}, not in these figures"


def is_flat(figures: GapFigures) -> bool:
    """Whether no finite loss was further above the baseline than one at its baseline may be."""
    return figures.recovery is Recovery.NOT_NEEDED or (figures.depth is not None and figures.depth <= BAND)


def is_better(figures: GapFigures) -> bool:
    """Whether a set that never rose ended below its baseline by more than a loss at its baseline may differ."""
    return figures.improvement is not None and figures.improvement > BAND


def first_rise_words(figures: GapFigures) -> str:
    """Of the first rise that came back, where a later one topped it; else nothing."""
    if figures.first_rise is None or figures.first_rise_tokens == figures.depth_tokens:
        return ""
    back = count_words(figures.first_rise_recovery_tokens)
    return f"; a first rise of {figures.first_rise:.3f} nats was back at {back} tokens"


def changed_words(tokens: int) -> str:
    """That a set was changed: `other sequences or labels from 1.2M tokens on, which are not in these figures`."""
    return f"other sequences or labels from {count_words(tokens)} tokens on, which are not in these figures"


def recovery_words(figures: GapFigures) -> str:
    """`recovered at 1.2M tokens`, `not recovered`, `never rose above its baseline` or `not recorded`."""
    if figures.recovery is Recovery.RECOVERED:
        return f"recovered at {count_words(figures.recovery_tokens)} tokens"
    if figures.recovery is Recovery.NOT_RECOVERED:
        return "not recovered"
    return "never rose above its baseline" if figures.recovery is Recovery.NOT_NEEDED else "not recorded"


def count_words(count: float | None) -> str:
    """A count of tokens in at most three digits: `512`, `1.2K`, `4.1B`; `not recorded` for None."""
    return "not recorded" if count is None else short_count(count, zeros=False)
