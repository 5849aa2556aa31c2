"""Whether runs can be fitted together: each once, the same sequences in a set, one batch size, one base model."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

from megatron_cpt.config.errors import Fault
from megatron_cpt.scaling_law.choose import Base, Laws, base_of
from megatron_cpt.scaling_law.curves import Curve

_SAME_START = 0.01
"""Nats per token: losses before the first update that are further apart are of different models. Those of one model
differ by rounding, layouts of ranks by less than a tenth of this."""
_APART = "Leave the run out, or fit it apart."


def repeated_faults(paths: Sequence[str]) -> list[Fault]:
    """Paths of a folder or file that was named before: its points would count twice."""
    first: dict[Path, str] = {}
    faults = []
    for path in paths:
        place = Path(path).resolve()
        if place in first:
            named = "" if first[place] == path else f", first as {first[place]}"
            faults.append(Fault(path, f"is given twice{named}: its points would count twice.", "Name it once."))
        first.setdefault(place, path)
    return faults


def sequence_faults(curves: Mapping[str, Sequence[Curve]]) -> list[Fault]:
    """Runs whose losses on a set are of other sequences than those of most runs."""
    sets: dict[tuple[str, str], list[str]] = {}
    for name, found in curves.items():
        usual, others = _others(found, [curve.identity for curve in found])
        for curve in others:
            sets.setdefault((curve.name, usual), []).append(name)
    rule = "{} on other sequences, or other labels of them, than in {}: the losses cannot be compared."
    return [
        Fault(f"{run}: {', '.join(names)}", rule.format("is" if len(names) == 1 else "are", usual),
              f"{_APART} Sets that all runs share are named with --set.")
        for (run, usual), names in sets.items()
    ]  # fmt: skip


def batch_faults(curves: Sequence[Curve]) -> list[Fault]:
    """Runs with another batch size than most."""
    usual, others = _others(curves, [curve.tokens_per_step for curve in curves])
    sizes = {curve.name: curve.tokens_per_step for curve in curves}
    rule = f"{usual} has {sizes.get(usual) or 0:,}, and the constants of a law hold for one batch size."
    return [Fault(f"{curve.name}: {curve.tokens_per_step:,} tokens a step", rule, _APART) for curve in others]


def base_faults(curves: Mapping[str, Sequence[Curve]]) -> list[Fault]:
    """Runs that began from another model than most of those whose base has the same history and size.

    Random weights are of every seed's own, and are not compared.
    """
    by_base: dict[tuple[str, str | None, Base], list[Curve]] = {}
    for name, found in curves.items():
        for curve in found:
            if curve.start_loss is not None and curve.base_forward_area != 0:
                by_base.setdefault((name, curve.identity, base_of(curve)), []).append(curve)
    faults: dict[str, Fault] = {}
    for (name, _, base), found in by_base.items():
        starts = [curve.start_loss or 0.0 for curve in found]
        near = [sum(abs(start - other) <= _SAME_START for other in starts) for start in starts]
        usual = found[near.index(max(near))]
        known = "has the same history and size" if base.forward_area is not None else "nothing tells their bases apart"
        for curve, start in zip(found, starts, strict=True):
            if abs(start - (usual.start_loss or 0.0)) > _SAME_START:
                value = f"{curve.name}: {name} is {start:.4f} before the first update"
                rule = f"it is {usual.start_loss:.4f} in {usual.name}, and {known}: the runs began from other models."
                remedy = f"{_APART} Checkpoints of one base are told apart by `base_history`."
                faults.setdefault(curve.name, Fault(value, rule, remedy))
    return list(faults.values())


def unlike_faults(laws: Laws, curves: Mapping[str, Sequence[Curve]]) -> list[Fault]:
    """Measured runs that fitted laws say nothing of: of other sequences than those, or from another model."""
    starts = {start.base: (name, start.losses) for name, start in laws.starts.items()}
    faults = []
    for name, curve in ((name, curve) for name, found in curves.items() for curve in found):
        identity = laws.identities.get(name)
        if None not in (identity, curve.identity) and identity != curve.identity:
            rule = "is on other sequences, or other labels of them, than the law: the losses cannot be compared."
            faults.append(Fault(f"{curve.name}: {name}", rule, "Leave the run out, or fit a law to runs of its set."))
            continue
        run, losses = starts.get(base_of(curve), ("", {}))
        fitted, found = losses.get(name), curve.start_loss
        if fitted is None or found is None or curve.base_forward_area == 0:
            continue
        if abs(fitted - found) > _SAME_START:
            value = f"{curve.name}: {name} is {found:.4f} before the first update"
            rule = f"it was {fitted:.4f} in {run}, of whose base the law is: the run began from another model."
            faults.append(Fault(value, rule, "Leave the run out, or fit a law to runs of its base."))
    return faults


def _others(curves: Sequence[Curve], values: Sequence[Hashable]) -> tuple[str, list[Curve]]:
    """The first run with the value that most have, and the runs with another; unknown values are passed over."""
    counts = Counter(value for value in values if value is not None)
    if not counts:
        return "", []
    usual = counts.most_common(1)[0][0]
    others = [curve for curve, value in zip(curves, values, strict=True) if value is not None and value != usual]
    return curves[values.index(usual)].name, others
