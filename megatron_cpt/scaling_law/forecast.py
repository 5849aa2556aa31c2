"""The final loss of a run that goes on, from what it has recorded so far and the schedule that it will follow.

From the records alone, draws of the law's parameters (uncertainty.py): what the run has not shown yet, above all what
its decay will bring, comes from wide priors and widens the band. With a law fitted on other runs their constants are
kept and only the level is taken from this run. A band knows nothing of a law that is wrong.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.config.load import load_config
from megatron_cpt.config.schedule import learning_rate
from megatron_cpt.config.units import Batches
from megatron_cpt.runs.folder import RunFolder, read_json_object
from megatron_cpt.scaling_law.continual import CONTINUAL
from megatron_cpt.scaling_law.curves import Curve, first_step, read_run
from megatron_cpt.scaling_law.fit import Fit
from megatron_cpt.scaling_law.laws import ANNEALING, Law
from megatron_cpt.scaling_law.uncertainty import likeness, posterior

_DRAWS = 200
"""Of the parameters."""
POINTS = 60
"""Of the rest of a run that are forecast."""
_LEAST_POINTS = 8
"""After the warm-up: below them nothing is forecast."""
_LEAST_SHARE = 0.1
"""Of the run: below it nothing is forecast."""
_WIDEST = 0.25
"""Nats from end to end: a band that is wider tells nothing, and no figure is given."""
_SEEN_FALL = 0.1
"""Part of the fall of the rate that must lie behind for its effect to count as measured."""
_LAW_ERROR = 0.003
"""Relative error of a law for each doubling of the updates, one standard deviation: of the size of what the annealing
law was off on the 25M curves of arXiv:2503.12811 (docs/scaling-laws.md)."""
_ANNEALING_ERROR = 0.3
"""Relative error of the annealing that is still to come, likewise."""


@dataclass(frozen=True)
class Forecast:
    """The loss of one validation set over the rest of a run, nats per token."""

    name: str
    """Of the set."""
    steps: np.ndarray
    """int64 [points]: updates done, from the last measured to the end of the run; empty where nothing is forecast."""
    middle: np.ndarray
    """float64 [points]: median."""
    low: np.ndarray
    """float64 [points]: 2.5 % of the draws are below."""
    high: np.ndarray
    """float64 [points]: 2.5 % of the draws are above."""
    notes: tuple[str, ...]
    """What it rests on, or why there is none, in words."""

    @property
    def exists(self) -> bool:
        """Whether there is a forecast."""
        return len(self.steps) > 0


def forecast(law: Law, curve: Curve, prior: Fit | None = None, seed: int = 0) -> Forecast:
    """The rest of a curve: its rates go on to the end of the run, its losses stop before.

    Args:
        law: that of the curve; of no account with a prior.
        prior: a law fitted to other runs.
    """
    steps, step = len(curve.rates), int(curve.steps[-1]) if len(curve.steps) else 0
    warm = int(np.argmax(curve.rates >= curve.rates.max() * (1 - 1e-9))) + 1
    used = curve.after(warm)
    if step >= steps:
        return _none(curve, "the run is at its end")
    if len(used.steps) < _LEAST_POINTS or step < _LEAST_SHARE * steps:
        points = f"{len(used.steps)} losses after the warm-up, {step} of {steps} updates"
        return _none(
            curve, f"too early: {points} ({_LEAST_POINTS} losses and {_LEAST_SHARE:.0%} of the run are needed)"
        )
    places = np.unique(np.linspace(step, steps, POINTS).round().astype(np.int64))
    rest = replace(used, steps=places, losses=np.full(len(places), np.nan))
    paths = _by_records(law, used, rest, seed) if prior is None else _by_prior(prior, used, rest, seed)
    low, middle, high = np.quantile(paths, (0.025, 0.5, 0.975), axis=0)
    if high[-1] - low[-1] > _WIDEST:
        between = f"the final loss may be anything from {low[-1]:.2f} to {high[-1]:.2f}"
        return _none(curve, f"too early: by these {step} of {steps} updates {between}")
    return Forecast(curve.name, places, middle, low, high, _notes(curve.rates, step, prior))


def _notes(rates: np.ndarray, step: int, prior: Fit | None) -> tuple[str, ...]:
    """What a forecast rests on."""
    notes = [f"extrapolates from {step} of {len(rates)} updates"]
    peak = float(rates.max())
    fall, behind = peak - float(rates[-1]), peak - float(rates[step - 1])
    if prior is None and fall > 0.01 * peak and behind < _SEEN_FALL * fall:
        notes.append("the fall of the learning rate is still to come: its effect is a guess from published fits")
    if prior is not None:
        notes.append("the level is that of this run, all else that of the given law")
    return tuple(notes)


def _none(curve: Curve, why: str) -> Forecast:
    return Forecast(curve.name, np.empty(0, np.int64), np.empty(0), np.empty(0), np.empty(0), (why,))


def _by_records(law: Law, curve: Curve, rest: Curve, seed: int) -> np.ndarray:
    """Paths of the rest from the run's own records: float64 [draws, points]."""
    vectors, noise = posterior(law, curve, law.held([rest]), _DRAWS, seed)
    generator, model = np.random.default_rng(seed), law.exact(rest)
    gain = [parameter.name for parameter in law.parameters].index("gain")
    doublings = np.log2(rest.steps / rest.steps[0])
    paths = []
    for values in vectors:
        path = np.real(model(values))
        without = values.copy()
        without[gain] = 0.0
        annealing = path - np.real(model(without))
        path += _ANNEALING_ERROR * (annealing - annealing[0]) * generator.standard_normal()
        path *= np.exp(_LAW_ERROR * doublings * generator.standard_normal())
        paths.append(path + noise * generator.standard_normal())
    return np.array(paths)


def _by_prior(prior: Fit, curve: Curve, rest: Curve, seed: int) -> np.ndarray:
    """Paths of the rest by a law fitted on other runs, each at the level of this run's later half."""
    generator = np.random.default_rng(seed)
    before, after = prior.law.exact(curve), prior.law.exact(rest)
    later = slice(len(curve.steps) // 2, None)
    paths = []
    drawn = prior.draws if len(prior.draws) else prior.vector[None]
    for values in drawn[generator.integers(0, len(drawn), _DRAWS)]:
        left = (curve.losses - np.real(before(values)))[later]
        around = left - left.mean()
        spread = float(np.sqrt(np.mean(around**2) * (1 + likeness([around]) / len(around))))
        paths.append(np.real(after(values)) + left.mean() + spread * generator.standard_normal())
    return np.array(paths)


def planned_curve(path: str | Path, validation_set: str) -> Curve:
    """The curve of a validation set of a run that goes on, its rates to the end of the run as configured.

    Raises BadInput where the run folder does not hold its configuration and plan.
    """
    folder, curve = RunFolder(path), read_run(path, validation_set)
    plan = read_json_object(folder.plan) or {}
    if not folder.config.is_file() or not {"steps", "tokens", "tokens_per_step"} <= plan.keys():
        raise BadInput(Fault(str(path), "has no config.yaml and plan.json.", "Give a folder written by `train`."))
    config, size = load_config(folder.config), plan["tokens_per_step"]
    batches = Batches(size, config.token_batches.ramp)
    shift = plan.get("start", {}).get("schedule_shift", 0)
    ahead = range(first_step(plan) + len(curve.rates) + 1, plan["steps"] + 1)
    rates = [learning_rate(config.schedule, batches.total(s) + shift, plan["tokens"] + shift, size) for s in ahead]
    return replace(curve, name=validation_set, rates=np.concatenate([curve.rates, rates]))


def law_of_run(path: str | Path) -> Law:
    """The annealing law of a run from random weights, else the law of continual pretraining."""
    weights = load_config(RunFolder(path).config).model.weights
    return ANNEALING if weights == "random" else CONTINUAL
