"""What `megatron-cpt law` is given: curves of run folders and logs; lists of numbers, shares and names."""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.config.units import parse_count, parse_share
from megatron_cpt.runs.foreign_logs import is_tensorboard
from megatron_cpt.scaling_law.comparable import repeated_faults
from megatron_cpt.scaling_law.continual import Combination, fit_combination
from megatron_cpt.scaling_law.curves import MOST_UPDATES, Curve, read_csv, read_run, read_tensorboard, sets_of

_LOG_SET = "loss"
"""What the one curve of a log of another system is called."""


def curves_of(paths: Sequence[str], sets: Sequence[str] | None, args: argparse.Namespace) -> dict[str, list[Curve]]:
    """The curves by validation set; those of logs of other systems are `loss`.

    Without sets, all that every run folder has. Two runs of one name are named by their paths.

    Raises BadInput for what cannot be read or is given twice, and for a mixture of run folders and logs, which no law
    describes.
    """
    refuse_missing(paths)
    refuse(_reading_faults(paths, args))
    runs = [path for path in paths if Path(path).is_dir() and not is_tensorboard(path)]
    if runs and len(runs) < len(paths):
        other = next(path for path in paths if path not in runs)
        raise BadInput(Fault(other, "is no run folder, and others are.", "Give run folders, or logs, not both."))
    if not runs:
        logs = _named_apart([_log(path, args) for path in paths], paths)
        first = 1 if args.from_step is None else args.from_step
        return {_LOG_SET: [_usable(path, log, first) for path, log in zip(paths, logs, strict=True)]}
    shared = list(sets or [name for name in sets_of(runs[0]) if all(name in sets_of(path) for path in runs)])
    if not shared:
        raise BadInput(Fault(", ".join(runs[:3]), "have no validation set in common.", "Name one with --set."))
    read = {name: _named_apart([read_run(path, name) for path in runs], runs) for name in shared}
    return {
        name: [
            _usable(path, curve, curve.transient if args.from_step is None else args.from_step)
            for path, curve in zip(runs, found, strict=True)
        ]
        for name, found in read.items()
    }


def refuse_missing(paths: Sequence[str]) -> None:
    """Raises BadInput for paths that are not there, or that are given twice."""
    remedy = "Give run folders, CSV files or TensorBoard folders."
    refuse([Fault(path, "is not there.", remedy) for path in paths if not Path(path).exists()])
    refuse(repeated_faults(paths))


def _reading_faults(paths: Sequence[str], args: argparse.Namespace) -> list[Fault]:
    """Options of reading that have no effect on what these paths are."""
    if any(is_tensorboard(path) for path in paths):
        return _set_faults(args)
    if any(Path(path).is_dir() for path in paths):
        rule = "is of logs: run folders hold the learning rates that were used."
        return unused_faults(args, rule, "warmup", "loss_tag", "rate_tag")
    return _set_faults(args) + unused_faults(args, "is of TensorBoard folders.", "loss_tag", "rate_tag")


def _set_faults(args: argparse.Namespace) -> list[Fault]:
    """Sets that are asked for, though logs have none."""
    rule, remedy = f"is no set of a log, whose one curve is {_LOG_SET}.", "Leave it out."
    sets = getattr(args, "sets", None) or []
    return [Fault(f"--set {name}", rule, remedy) for name in sets if name != _LOG_SET]


OF_A_SCHEDULE = ("schedule", "peak_lr", "steps", "base", "bases", "warmup_share", "final_share", "decay_share")
"""Options of a schedule that nobody has run."""
_OPTIONS = {"sets": "set", "bases": "base"}
"""Where the name of an option is not that of its value."""


def unused_faults(args: argparse.Namespace, rule: str, *names: str) -> list[Fault]:
    """Options that were given and have no effect, by the names of their values (None, False or empty: not given)."""
    values = {name: getattr(args, name, None) for name in names}
    given = [name for name, value in values.items() if value is not None and value is not False and value != []]
    return [Fault(f"--{_OPTIONS.get(name, name).replace('_', '-')}", rule, "Leave it out.") for name in given]


def below_faults(args: argparse.Namespace, **least: int) -> list[Fault]:
    """Whole numbers below their least, by the names of their values; those not given are passed over."""
    given = {name: getattr(args, name) for name in least}
    return [
        Fault(f"--{name.replace('_', '-')} {value}", f"is below {least[name]}.", f"Give {least[name]} or more.")
        for name, value in given.items()
        if value is not None and value < least[name]
    ]


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
        if name in found:
            raise BadInput(Fault(f"--combine {word}", f"{name} was combined before.", "Combine each set once."))
        found[name] = fit_combination(old, new, curves[name], curves[old], curves[new])
    chained = [one for combined in found.values() for one in (combined.old, combined.new) if one in found]
    refuse([Fault(one, "is a combination itself.", "Combine sets that a law is fitted to.") for one in chained])
    return found


def _log(path: str, args: argparse.Namespace) -> Curve:
    if is_tensorboard(path):
        return read_tensorboard(path, args.loss_tag or "loss", args.rate_tag or "lr", args.warmup)
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
    """`NAME=NUMBER` words of `--fix`."""
    return _named(words, None, "--fix")


def weights_of(words: Sequence[str]) -> dict[str, float]:
    """`SET` and `SET=WEIGHT` words of `--minimise`. Raises BadInput for a sum that nothing is the best for."""
    weights = _named(words, 1.0, "--minimise")
    remedy = "Give numbers of at least 0, one of them above 0."
    refuse([Fault(f"--minimise {name}={weight:g}", "is no weight.", remedy) for name, weight in weights.items()
            if not 0 <= weight < math.inf])  # fmt: skip
    if not any(weights.values()):
        raise BadInput(Fault(f"--minimise {' '.join(words)}", "weighs nothing: all recipes are alike.", remedy))
    return weights


def bounds_of(words: Sequence[str]) -> dict[str, float]:
    """`SET=NATS` words of `--bound`."""
    bounds = _named(words, None, "--bound")
    remedy = "Give nats that the loss may rise above its start, say 0.02."
    refuse([Fault(f"--bound {name}={most:g}", "is no bound.", remedy) for name, most in bounds.items()
            if not math.isfinite(most)])  # fmt: skip
    return bounds


def _named(words: Sequence[str], default: float | None, flag: str) -> dict[str, float]:
    """`NAME=NUMBER` words; a name alone has the default, where there is one."""
    values: dict[str, float] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if name in values:
            raise BadInput(Fault(f"{flag} {word}", f"{name} was given before.", "Give each name once."))
        try:
            values[name] = default if not equals and default is not None else float(value)
        except ValueError as error:
            example = "gain=0.3" if flag == "--fix" else "general=0.02"
            raise BadInput(Fault(f"{flag} {word}", "is not NAME=NUMBER.", f"Write, say, {example}.")) from error
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
    if not all(value.is_integer() for value in values):
        raise BadInput(Fault(f"{flag} {words}", "is no list of whole numbers.", "Write, say, 5000,20000."))
    refuse([Fault(f"{flag} {value:g}", "is below 1.", "Give 1 or more.") for value in values if value < 1])
    return [int(value) for value in values]


def rate_faults(peak: float) -> list[Fault]:
    """What is wrong with a peak learning rate."""
    rule = "is not above 0." if not peak > 0 else "is not finite."
    return [] if 0 < peak < math.inf else [Fault(f"--peak-lr {peak:g}", rule, "Give a learning rate, say 3e-4.")]


def length_faults(steps: int) -> list[Fault]:
    """What is wrong with a length that is at least 1."""
    rule = f"is beyond the {MOST_UPDATES:,} updates that a law takes."
    return [Fault(f"--steps {steps}", rule, "Give updates, not tokens.")] if steps > MOST_UPDATES else []


def count(flag: str, words: str | None) -> float | None:
    """A count such as 5B; None where nothing was given. Raises BadInput for a word that is none, and for 0."""
    if words is None:
        return None
    try:
        found = float(parse_count(words))
    except ValueError as error:
        raise BadInput(Fault(f"{flag} {words}", f"{error}.", "Write, say, 5B.")) from error
    if not found:
        raise BadInput(Fault(f"{flag} {words}", "is not above 0.", "Write, say, 5B."))
    return found
