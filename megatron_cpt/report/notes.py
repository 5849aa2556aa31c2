"""What a report says on the terminal besides a line for each run: what it could not compare or measure, and why.

Each note names the run, the set and the step, and says what to do. The page has them where it leaves something out.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.gap.compare import ControlSplit, SplitRise
from megatron_cpt.gap.curves import LossCurve, is_unknown
from megatron_cpt.gap.figures import GapFigures
from megatron_cpt.gap.summary import count_words
from megatron_cpt.report.read import Comparison, ReportedRun
from megatron_cpt.report.sections import Forecasts, forecast_inputs, overlapped_names
from megatron_cpt.scaling_law.fit import Fit

_SAME_RATE = 1e-6
"""Relative difference of two learning rates that are the same."""
_SAME_FILES = "Compare runs that evaluated the same files with one sequence length and tokenizer."


def report_notes(runs: Sequence[ReportedRun], comparison: Comparison) -> Iterator[Fault]:
    """What the figures of some runs lack, each with its reason and remedy."""
    for run in runs:
        for kind, curves in (("set", run.validation), ("task", run.tasks)):
            for curve, figures in curves:
                yield from _not_finite(run, kind, curve, figures)
    yield from other_sequences([run for run in runs if run.name != comparison.control])
    for run_name, sets in comparison.splits.items():
        for name, split in sets.items():
            yield from _not_split(comparison.control, run_name, name, split)
    control = next((run for run in runs if run.name == comparison.control), None)
    for run in runs:
        if control is not None and run is not control:
            yield from _other_schedule(run, control)
    for arm in comparison.arms:
        for name, measured in arm.sets.items():
            if measured.missing is not None and len(arm.runs) > 1:
                remedy = "Report the arm without such runs, or once all have ended."
                yield Fault(f"arm {arm.name}", f"set {name} is not averaged: {measured.missing}.", remedy)
    for run in runs:
        if names := overlapped_names(run):
            rule = f"trained on documents that overlap {', '.join(names)}."
            yield Fault(run.name, rule, "Prepare its sources again with --decontaminate, or leave these figures out.")


def forecast_notes(runs: Sequence[ReportedRun], forecasts: Forecasts, laws: Mapping[str, Fit]) -> Iterator[Fault]:
    """What a law that was given (`laws` by set) did not forecast."""
    for run in runs:
        if run.name not in forecasts:
            try:
                forecast_inputs(run)
                continue
            except BadInput as error:
                yield from (Fault(f"no forecast of {run.name}", *_of(fault)) for fault in error.faults)
        for curve, _ in forecasts.get(run.name, []):
            if curve.name not in laws:
                rule = f"set {curve.name} is not in the law, which has {', '.join(laws)}: its forecast is made of "
                rule += "the records of the run alone."
                yield Fault(f"forecast of {run.name}", rule, "Fit a law of the set with `law fit --set`.")


def _of(fault: Fault) -> tuple[str, str]:
    return f"{fault.value}: {fault.rule}", fault.remedy


def _not_finite(run: ReportedRun, kind: str, curve: LossCurve, figures: GapFigures) -> Iterator[Fault]:
    if figures.not_finite is None:
        return
    left_out = "" if figures.missing is not None else "; the metrics leave that out, and `area` is not given"
    end = "" if curve.is_finite[-1] else ", nor what needs the last loss"
    remedy = "Check the log there."
    if not is_unknown(curve):
        parts = "`sequence_nats` is null for the sequences" if kind == "set" else "`item_losses` is null for the items"
        remedy = (
            f"In records.jsonl, {parts} at fault. If it is so for all, the weights "
            "are at fault: at step 0 those of the base; later the run diverged (lower schedule.peak_lr, or start from "
            "an earlier checkpoint)."
        )
    rule = f"the loss of {curve.name} is not finite at {figures.not_finite}{left_out}{end if left_out else ''}."
    yield Fault(run.name, rule, remedy)


def other_sequences(runs: Sequence[ReportedRun]) -> Iterator[Fault]:
    """Sets and tasks that are not the same sequences in all runs, or not known to be."""
    for kind, measured in (("set", [run.validation for run in runs]), ("task", [run.tasks for run in runs])):
        curves: dict[str, list[tuple[str, LossCurve]]] = {}
        for run, of_run in zip(runs, measured, strict=True):
            for curve, _ in of_run:
                curves.setdefault(curve.name, []).append((run.name, curve))
        for name, ((first, one), *rest) in curves.items():
            others = [(run, curve) for run, curve in rest if curve.identity != one.identity]
            if not others:
                continue
            names = ", ".join(run for run, _ in others)
            known = not is_unknown(one) and not any(is_unknown(curve) for _, curve in others)
            what = f"other sequences in {names} than in {first}" if known else (
                f"it is not known whether {names} and {first} evaluated the same sequences"
            )  # fmt: skip
            yield Fault(f"{kind} {name}", f"{what}: losses are not comparable between them.", _SAME_FILES)


def _not_split(control: str | None, run: str, name: str, split: ControlSplit) -> Iterator[Fault]:
    if split.missing is not None and split.remedy is not None:
        yield Fault(f"control {control}", f"set {name} of {run} is not split: {split.missing}.", split.remedy)


def _other_schedule(run: ReportedRun, control: ReportedRun) -> Iterator[Fault]:
    """That a control had other learning rates, where both have an update at the same tokens."""
    _, ours, theirs = np.intersect1d(run.training.tokens, control.training.tokens, return_indices=True)
    rates, others = run.training.learning_rates[ours], control.training.learning_rates[theirs]
    different = np.flatnonzero(np.abs(rates - others) > _SAME_RATE * np.maximum(np.abs(rates), np.abs(others)))
    if len(different):
        at = different[0]
        place = f"{count_words(int(run.training.tokens[ours[at]]))} tokens"
        rule = f"its learning rate at {place} is {others[at]:.3g}, that of {run.name} {rates[at]:.3g}: "
        rule += "its rise is not the re-warming of that run."
        yield Fault(f"control {control.name}", rule, "Name a control with the same schedule.")


def split_line(name: str, split: ControlSplit) -> str:
    """The split of a set's rise in words; `split` must have one.

    `general rose 0.541 nats at 512K tokens: re-warming +0.112, shift +0.429; at 819K tokens re-warming -0.010, shift
    +0.520`
    """
    assert split.depth is not None and split.final is not None
    rose = f"rose {split.depth.rise:.3f} nats at {count_words(split.depth.tokens)} tokens: {_parts(split.depth)}"
    end = f"at {count_words(split.final.tokens)} tokens {_parts(split.final)}"
    doubt = "; no shift above evaluation noise" if split.significant is False else ""
    return f"{name} {rose if split.depth.tokens else 'did not rise'}; {end}{doubt}"


def _parts(rise: SplitRise) -> str:
    return f"re-warming {rise.rewarming:+.3f}, shift {rise.shift:+.3f}"
