"""What `megatron-cpt law` is given: curves of run folders and logs; lists of numbers, shares and names."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.config.units import parse_count, parse_share
from megatron_cpt.runs.foreign_logs import is_tensorboard
from megatron_cpt.scaling_law.comparable import repeated_faults
from megatron_cpt.scaling_law.continual import Combination, fit_combination
from megatron_cpt.scaling_law.curves import Curve, read_csv, read_run, read_tensorboard, sets_of

_LOG_SET = "loss"
"""What the one curve of a log of another system is called."""


def curves_of(paths: Sequence[str], sets: Sequence[str] | None, args: argparse.Namespace) -> dict[str, list[Curve]]:
    """The curves by validation set; those of logs of other systems are `loss`.

    Without sets, all that every run folder has. Two runs of one name are named by their paths.

    Raises BadInput for what cannot be read or is given twice, and for a mixture of run folders and logs, which no law
    describes.
    """
    refuse_missing(paths)
    runs = [path for path in paths if Path(path).is_dir() and not is_tensorboard(path)]
    if runs and len(runs) < len(paths):
        other = next(path for path in paths if path not in runs)
        raise BadInput(Fault(other, "is no run folder, and others are.", "Give run folders, or logs, not both."))
    if not runs:
        logs = _named_apart([_log(path, args) for path in paths], paths)
        return {_LOG_SET: [_usable(*one, args.from_step or 1) for one in zip(paths, logs, strict=True)]}
    shared = list(sets or [name for name in sets_of(runs[0]) if all(name in sets_of(path) for path in runs)])
    if not shared:
        raise BadInput(Fault(", ".join(runs[:3]), "have no validation set in common.", "Name one with --set."))
    read = {name: _named_apart([read_run(path, name) for path in runs], runs) for name in shared}
    return {
        name: [_usable(path, curve, args.from_step or curve.transient) for path, curve in zip(runs, found, strict=True)]
        for name, found in read.items()
    }


def refuse_missing(paths: Sequence[str]) -> None:
    """Raises BadInput for paths that are not there, or that are given twice."""
    remedy = "Give run folders, CSV files or TensorBoard folders."
    refuse([Fault(path, "is not there.", remedy) for path in paths if not Path(path).exists()])
    refuse(repeated_faults(paths))


def _named_apart(curves: Sequence[Curve], paths: Sequence[str]) -> list[Curve]:
    """Curves of these paths, named by them where two have one name."""
    names = [curve.name for curve in curves]
    return [
        replace(curve, name=path) if names.count(curve.name) > 1 else curve
        for curve, path in zip(curves, paths, strict=True)
    ]


def combinations_of(words: Sequence[str], curves: Mapping[str, Sequence[Curve]]) -> dict[str, Combination]:
    """`SET=OLD,NEW` words, each fitted to the curves of the three sets."""
    found = {}
    for word in words:
        name, _, two = word.partition("=")
        old, comma, new = two.partition(",")
        if not comma:
            raise BadInput(Fault(f"--combine {word}", "is not SET=OLD,NEW.", "Write, say, books=general,domain."))
        unknown = [one for one in (name, old, new) if one not in curves]
        refuse([Fault(one, "is no set of these runs.", f"They share {', '.join(curves)}.") for one in unknown])
        if len({name, old, new}) < 3:
            raise BadInput(Fault(f"--combine {word}", "names a set twice.", "Name three different ones."))
        found[name] = fit_combination(old, new, curves[name], curves[old], curves[new])
    chained = [one for combined in found.values() for one in (combined.old, combined.new) if one in found]
    refuse([Fault(one, "is a combination itself.", "Combine sets that a law is fitted to.") for one in chained])
    return found


def _log(path: str, args: argparse.Namespace) -> Curve:
    if is_tensorboard(path):
        return read_tensorboard(path, args.loss_tag, args.rate_tag, args.warmup)
    return read_csv(path, args.warmup)


def _usable(path: str, curve: Curve, first: int) -> Curve:
    """The curve from a step on, without points before the first update at a rate above 0, where S1 is 0."""
    if not np.any(curve.rates > 0):
        raise BadInput(Fault(path, "has no learning rate above 0.", "Give a curve of training."))
    kept = curve.after(max(first, int(np.argmax(curve.rates > 0)) + 1))
    if not len(kept.steps):
        rule = f"has no loss from step {first} on."
        raise BadInput(Fault(path, rule, "Give a curve with losses, or a lower --from-step."))
    return kept


def fixed(words: Sequence[str]) -> dict[str, float]:
    """`NAME=NUMBER` words."""
    return named(words, None)


def named(words: Sequence[str], default: float | None) -> dict[str, float]:
    """`NAME=NUMBER` words; a name alone has the default, where there is one."""
    values = {}
    for word in words:
        name, equals, value = word.partition("=")
        try:
            values[name] = default if not equals and default is not None else float(value)
        except ValueError as error:
            raise BadInput(Fault(word, "is not NAME=NUMBER.", "Write, say, general=0.02.")) from error
    return values


def numbers(words: str | None, flag: str) -> list[float]:
    """Numbers between commas; empty where nothing was given."""
    try:
        return [float(word) for word in words.split(",")] if words else []
    except ValueError as error:
        raise BadInput(Fault(f"{flag} {words}", "is no list of numbers.", "Write, say, 0,0.01,0.05.")) from error


def shares(words: str | None, flag: str) -> list[float]:
    """Numbers or percentages between commas; empty where nothing was given. What is no share is found later."""
    found = [word.strip().removesuffix("%") for word in (words or "").split(",")]
    percent = [word.strip().endswith("%") for word in (words or "").split(",")]
    values = numbers(",".join(found) if words else None, flag)
    return [value / 100 if is_percent else value for value, is_percent in zip(values, percent, strict=False)]


def share(word: str) -> float:
    """A share, as argparse reads it. Raises ArgumentTypeError."""
    try:
        return parse_share(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def wholes(words: str | None, flag: str) -> list[int]:
    """Whole numbers from 1 on, between commas."""
    values = numbers(words, flag)
    if any(value < 1 or value != int(value) for value in values):
        raise BadInput(Fault(f"{flag} {words}", "is no list of whole numbers.", "Write, say, 5000,20000."))
    return [int(value) for value in values]


def count(flag: str, words: str | None) -> float | None:
    """A count such as 5B; None where nothing was given."""
    if words is None:
        return None
    try:
        return float(parse_count(words))
    except ValueError as error:
        raise BadInput(Fault(f"{flag} {words}", f"{error}.", "Write, say, 5B.")) from error
