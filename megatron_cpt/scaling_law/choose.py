"""From fitted laws to a choice: predicted loss of any schedule, length and replay ratio, and the best of many.

law.json keeps the fitted laws of the validation sets of some runs, with what they were fitted on.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.config.schedule import learning_rate
from megatron_cpt.config.schema import ScheduleSettings
from megatron_cpt.config.units import Duration
from megatron_cpt.runs.folder import proved
from megatron_cpt.scaling_law.continual import LAWS, Combination
from megatron_cpt.scaling_law.curves import Curve
from megatron_cpt.scaling_law.fit import NORMAL_95, Fit
from megatron_cpt.scaling_law.fitted_range import Fitted, range_of
from megatron_cpt.scaling_law.laws import Law
from megatron_cpt.scaling_law.problem import Method
from megatron_cpt.scaling_law.uncertainty import Band, band

Kind = Literal["constant", "linear", "cosine", "wsd"]

POINTS = 100
"""Points of a predicted curve."""
_LENGTHS_PER_DOUBLING = 8
"""Lengths that are tried in the search for the turning length: it is known to 9 %."""


@dataclass(frozen=True)
class Base:
    """The pretraining that the runs begin from; None where it is not known."""

    forward_area: float | None = None
    """S1."""
    annealing_area: float | None = None
    """S2."""
    peak_rate: float | None = None
    """Highest learning rate."""
    final_rate: float | None = None
    """Last learning rate."""
    model_size: float | None = None
    """Parameters without embeddings."""

    @property
    def loss_potential(self) -> float | None:
        """Last rate over peak rate (arXiv:2505.07796 section 5.1): 0 is fully annealed, 1 not at all."""
        if self.final_rate is None or not self.peak_rate:
            return None
        return self.final_rate / self.peak_rate


def base_of(curve: Curve) -> Base:
    """What a curve's run began from."""
    return Base(
        curve.base_forward_area,
        curve.base_annealing_area,
        curve.base_peak_rate,
        curve.base_final_rate,
        curve.model_size,
    )


@dataclass(frozen=True)
class Start:
    """A base that runs began from, and the losses there."""

    base: Base
    losses: dict[str, float | None]
    """Loss before the first update, by validation set, nats per token; the mean over the runs that measured it, None
    where none did."""


@dataclass(frozen=True)
class Recipe:
    """One way to continue: what can be chosen."""

    kind: Kind
    """Shape of the learning rate after the warm-up."""
    peak: float
    """Highest learning rate."""
    steps: int
    """Updates."""
    replay_ratio: float
    """Share of replay among the tokens."""
    final: float = 0.1
    """Last learning rate, as a share of the peak; not used by `constant`."""
    warmup: float = 0.01
    """Linear rise from 0, as a share of the run."""
    decay: float = 0.1
    """wsd alone: the final decay, as a share of the run."""
    start: str = ""
    """Which base, a name of `Laws.starts`; empty: the only one."""

    def rates(self) -> np.ndarray:
        """The learning rate of every update: float64 [steps]."""
        schedule = ScheduleSettings(
            kind=self.kind,
            peak_lr=self.peak,
            final_lr=self.final * self.peak,
            warmup=_stretch(self.warmup, self.steps),
            decay=_stretch(self.decay, self.steps),
        )
        return np.array([learning_rate(schedule, step, self.steps, 1) for step in range(1, self.steps + 1)])

    def curve(self, base: Base, points: int = POINTS) -> Curve:
        """A curve to be predicted, its losses unknown (NaN)."""
        steps = np.unique(np.linspace(1, self.steps, min(points, self.steps)).round().astype(np.int64))
        return Curve(
            name=f"{self.kind}, peak {self.peak:g}, {self.steps} steps, replay {self.replay_ratio:g}",
            rates=self.rates(),
            steps=steps,
            losses=np.full(len(steps), np.nan),
            base_forward_area=base.forward_area,
            base_annealing_area=base.annealing_area,
            base_final_rate=base.final_rate,
            domain_share=1 - self.replay_ratio,
            model_size=base.model_size,
            kind=self.kind,
        )


@dataclass(frozen=True)
class Prediction:
    """The final loss of one validation set, nats per token."""

    loss: float
    low: float
    """Lower end of the 95 % band; NaN where the law has none."""
    high: float
    """Upper end of the 95 % band; NaN where the law has none."""
    rise: float | None
    """Loss minus the loss before the first update; None where that was not measured."""


@dataclass(frozen=True)
class Outcome:
    """What the laws say of a recipe."""

    recipe: Recipe
    sets: dict[str, Prediction]
    objective: float
    """The weighted sum of losses that is made small."""
    broken: tuple[str, ...]
    """Sets whose predicted rise is above its bound."""
    unsure: tuple[str, ...]
    """Sets whose rise is within its bound while the upper end of the band is above it."""
    beyond: tuple[str, ...]
    """In what the recipe lies outside of what was fitted."""


@dataclass(frozen=True)
class Laws:
    """The fitted laws of the validation sets of the same runs."""

    fits: dict[str, Fit]
    """By validation set."""
    starts: dict[str, Start]
    """The bases that the runs began from, by the name of the first run that did."""
    fitted: Fitted
    combinations: dict[str, Combination] = field(default_factory=dict)
    """Sets whose loss is a sum of two of the others."""
    identities: dict[str, str | None] = field(default_factory=dict)
    """Hash of the sequences that the losses are of, by set; None where the curves do not say."""

    @property
    def sets(self) -> list[str]:
        """All sets that are predicted."""
        return [*self.fits, *self.combinations]

    def start_of(self, recipe: Recipe) -> Start:
        """What a recipe begins from. Raises BadInput where it must say which, and for a name that is not there."""
        if recipe.start in self.starts:
            return self.starts[recipe.start]
        if recipe.start == "" and len(self.starts) == 1:
            return next(iter(self.starts.values()))
        rule = "is no base of these laws." if recipe.start else "is missing: the runs began from several bases."
        raise BadInput(Fault(f"--base {recipe.start}".rstrip(), rule, f"Name the base of {', '.join(self.starts)}."))

    def outcome(
        self, recipe: Recipe, weights: Mapping[str, float], bounds: Mapping[str, float] | None = None
    ) -> Outcome:
        """The final losses of a recipe and how they stand to weights and bounds."""
        begun = self.start_of(recipe)
        curve = recipe.curve(begun.base, points=2)
        sets = {name: _prediction(band(fit, curve), begun.losses.get(name)) for name, fit in self.fits.items()}
        for name, combined in self.combinations.items():
            sets[name] = _combined(combined, sets[combined.old], sets[combined.new], begun.losses.get(name))
        broken, unsure = [], []
        for name, most in (bounds or {}).items():
            start = begun.losses[name]
            rise = sets[name].rise
            if start is None or rise is None or rise > most:
                broken.append(name)
            elif sets[name].high - start > most:
                unsure.append(name)
        return Outcome(
            recipe=recipe,
            sets=sets,
            objective=sum(weight * sets[name].loss for name, weight in weights.items()),
            broken=tuple(broken),
            unsure=tuple(unsure),
            beyond=self.fitted.beyond(curve),
        )

    def error_left_out(self, name: str) -> float | None:
        """The largest error at the end of a schedule left out, nats: what is known of the error where nothing was
        fitted. None where none was left out."""
        parts = [name] if name in self.fits else [self.combinations[name].old, self.combinations[name].new]
        errors = [abs(error) for part in parts for error in self.fits[part].left_out.values()]
        return max(errors, default=None)


def _prediction(predicted: Band, start: float | None) -> Prediction:
    loss = float(predicted.middle[-1])
    rise = None if start is None else loss - start
    return Prediction(loss, float(predicted.low[-1]), float(predicted.high[-1]), rise)


def _combined(combined: Combination, old: Prediction, new: Prediction, start: float | None) -> Prediction:
    """The widest band that the two allow, and what the combination itself leaves."""
    loss = combined.loss(old.loss, new.loss)
    down = abs(combined.old_weight) * (old.loss - old.low), abs(combined.new_weight) * (new.loss - new.low)
    up = abs(combined.old_weight) * (old.high - old.loss), abs(combined.new_weight) * (new.high - new.loss)
    below = [d if weight > 0 else u for d, u, weight in zip(down, up, combined.weights, strict=True)]
    above = [u if weight > 0 else d for d, u, weight in zip(down, up, combined.weights, strict=True)]
    own = NORMAL_95 * combined.error
    rise = None if start is None else loss - start
    return Prediction(loss, loss - sum(below) - own, loss + sum(above) + own, rise)


def recipes(
    kinds: Sequence[Kind],
    peaks: Sequence[float],
    steps: Sequence[int],
    replay_ratios: Sequence[float],
    starts: Sequence[str] = ("",),
    shape: Mapping[str, float] | None = None,
) -> list[Recipe]:
    """All combinations, each with these values of `final`, `warmup` and `decay` (None: the defaults)."""
    return [
        Recipe(kind, peak, length, ratio, start=start, **shape or {})
        for kind, peak, length, ratio, start in product(kinds, peaks, steps, replay_ratios, starts)
    ]


def ranked(
    laws: Laws,
    candidates: Iterable[Recipe],
    weights: Mapping[str, float],
    bounds: Mapping[str, float] | None = None,
) -> list[Outcome]:
    """The outcomes of all candidates, the best first: those within all bounds, by their weighted sum of losses.

    Where none is within its bounds the one that breaks them least comes first; `broken` says so. A set without a
    measured start counts as breaking its bound: a rise cannot be told.
    """

    def order(outcome: Outcome) -> tuple[float, float]:
        excess = sum((outcome.sets[name].rise or 0.0) - (bounds or {})[name] for name in outcome.broken)
        return (excess if outcome.broken else -np.inf, outcome.objective)

    return sorted((laws.outcome(recipe, weights, bounds) for recipe in candidates), key=order)


def turning_length(laws: Laws, weights: Mapping[str, float], like: Recipe, longest: int) -> int | None:
    """The fewest updates after which a weighted sum of losses is back at its start (arXiv:2505.07796 section 5).

    Each length is a run of its own, with the schedule of `like` stretched to it, from the first step that was fitted
    on. 0 where the sum is never above the start; None where it does not come back within `longest` updates, or a start
    was not measured.
    """
    losses = [loss for name in weights if (loss := laws.start_of(like).losses.get(name)) is not None]
    if len(losses) < len(weights):
        return None
    start = sum(weight * value for weight, value in zip(weights.values(), losses, strict=True))
    count = max(2, int(np.log2(longest) * _LENGTHS_PER_DOUBLING))
    lengths = np.unique(np.geomspace(max(2, laws.fitted.first_step), longest, count).round().astype(int))
    sums = np.array([_weighted_end(laws, weights, like, int(length)) for length in lengths])
    above = np.flatnonzero(sums > start)
    if not len(above):
        return 0
    if above[-1] + 1 == len(lengths):
        return None
    return int(lengths[above[-1] + 1])


@dataclass(frozen=True)
class CriticalPoint:
    """A loss, nats per token."""

    loss: float
    low: float | None
    """Lower end of the 95 % interval over the draws; None where nothing was drawn."""
    high: float | None
    """Upper end of the 95 % interval over the draws; None where nothing was drawn."""


def critical_point(fit: Fit) -> CriticalPoint | None:
    """L0 + B, where the general loss of endless training on the new data alone ends (arXiv:2505.07796 section 5.2).

    A base whose general loss is above it will come back below its start, given enough updates; one below it will not.
    None where the curves do not tell B or beta: a small beta with a large B looks the same and means nothing.
    """
    identified = {"shift_size", "shift_exponent", "floor"} - set(fit.weak)
    if len(identified) < 3:
        return None
    names = [parameter.name for parameter in fit.law.parameters]
    columns = [names.index("floor"), names.index("shift_size")]
    low, high = (None, None)
    if len(fit.draws):
        low, high = map(float, np.quantile(fit.draws[:, columns].sum(axis=1), (0.025, 0.975)))
    return CriticalPoint(float(fit.vector[columns].sum()), low, high)


def _weighted_end(laws: Laws, weights: Mapping[str, float], like: Recipe, steps: int) -> float:
    curve = replace(like, steps=steps).curve(laws.start_of(like).base, points=2)
    ends = {name: float(fit.predict(curve)[-1]) for name, fit in laws.fits.items()}
    ends |= {name: one.loss(ends[one.old], ends[one.new]) for name, one in laws.combinations.items()}
    return sum(weight * ends[name] for name, weight in weights.items())


def _stretch(share: float, steps: int) -> Duration | None:
    amount = round(share * steps)
    return Duration(amount, "steps") if amount else None


def laws_of(
    fits: Mapping[str, Fit],
    curves: Mapping[str, Sequence[Curve]],
    combinations: Mapping[str, Combination] | None = None,
) -> Laws:
    """The fits of validation sets with the bases and the range of the curves they were made from."""
    return Laws(
        fits=dict(fits),
        starts=_starts_of(curves),
        fitted=range_of([curve for found in curves.values() for curve in found]),
        combinations=dict(combinations or {}),
        identities={
            name: next((curve.identity for curve in found if curve.identity is not None), None)
            for name, found in curves.items()
        },
    )


def _starts_of(curves: Mapping[str, Sequence[Curve]]) -> dict[str, Start]:
    """The bases of curves by the name of the first run from each."""
    named: dict[Base, str] = {}
    measured: dict[Base, dict[str, list[float]]] = {}
    for validation_set, found in curves.items():
        for curve in found:
            base = base_of(curve)
            named.setdefault(base, curve.name)
            losses = measured.setdefault(base, {}).setdefault(validation_set, [])
            losses += [] if curve.start_loss is None else [curve.start_loss]
    return {
        name: Start(base, {one: float(np.mean(values)) if values else None for one, values in measured[base].items()})
        for base, name in named.items()
    }


def to_document(laws: Laws) -> dict[str, Any]:
    """The content of law.json."""
    return {
        "sets": {name: fit_to_document(fit) for name, fit in laws.fits.items()},
        "starts": {name: asdict(start) for name, start in laws.starts.items()},
        "combinations": {name: asdict(combined) for name, combined in laws.combinations.items()},
        "identities": laws.identities,
        "fitted": asdict(laws.fitted),
    }


def read_laws(path: Path) -> Laws:
    """The laws of a law.json. Raises BadInput for a file that is none."""
    try:
        content = proved(path, orjson.loads(path.read_bytes()))
        fitted = content["fitted"]
        return Laws(
            fits={name: fit_of_document(part, LAWS[part["law"]]) for name, part in content["sets"].items()},
            starts={
                name: Start(Base(**start["base"]), dict(start["losses"])) for name, start in content["starts"].items()
            },
            fitted=Fitted(**fitted | {name: tuple(fitted[name]) for name in ("replay_ratio", "peak", "kinds")}),
            combinations={name: Combination(**part) for name, part in content["combinations"].items()},
            identities=dict(content.get("identities", {})),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        rule = f"cannot be read: {error.strerror}." if isinstance(error, OSError) else "is no fitted law."
        fault = Fault(str(path), rule, "Give a law.json written by `megatron-cpt law fit`.")
        raise BadInput(fault) from error


def fit_to_document(fit: Fit) -> dict[str, Any]:
    """A fit as JSON has it."""
    errors = {name: error if np.isfinite(error) else None for name, error in fit.standard_errors.items()}
    return {
        "law": fit.law.name,
        "parameters": fit.parameters,
        "standard_errors": errors,
        "intervals": fit.intervals,
        "weakly_identified": list(fit.weak),
        "at_bound": list(fit.at_bound),
        "objective": fit.objective,
        "points": fit.points,
        "noise": fit.noise,
        "method": asdict(fit.method),
        "profiles": fit.profiles,
        "extremes": fit.extremes.tolist(),
        "draws": fit.draws.tolist(),
        "widening": fit.widening,
        "times_left_out": fit.times_left_out,
        "left_out": fit.left_out,
    }


def fit_of_document(content: Mapping[str, Any], law: Law) -> Fit:
    """What `fit_to_document` made. Raises KeyError, TypeError or ValueError for anything else."""
    errors = {name: np.inf if error is None else float(error) for name, error in content["standard_errors"].items()}
    return Fit(
        law=law,
        parameters={parameter.name: float(content["parameters"][parameter.name]) for parameter in law.parameters},
        objective=float(content["objective"]),
        points=int(content["points"]),
        standard_errors=errors,
        at_bound=tuple(content["at_bound"]),
        draws=np.array(content["draws"], dtype=float).reshape(-1, len(law.parameters)),
        noise=float(content["noise"]),
        method=Method(**content["method"]),
        profiles={name: (float(low), float(high)) for name, (low, high) in content["profiles"].items()},
        extremes=np.array(content["extremes"], dtype=float).reshape(-1, len(law.parameters)),
        widening=float(content.get("widening", 0.0)),
        times_left_out=int(content.get("times_left_out", 0)),
        left_out={name: float(error) for name, error in content.get("left_out", {}).items()},
    )
