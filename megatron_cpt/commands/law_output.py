"""What `megatron-cpt law` prints: fits, errors, choices."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from megatron_cpt.mixture.blend import CHEAP_EPOCHS, effective_unique_tokens
from megatron_cpt.scaling_law.choose import CriticalPoint, Laws, Outcome, Recipe
from megatron_cpt.scaling_law.continual import Combination
from megatron_cpt.scaling_law.fit import Errors, Fit, mean_errors
from megatron_cpt.scaling_law.laws import DECAY


def fit_text(fit: Fit) -> str:
    """A fit as lines of text, weakly identified parameters marked."""
    lines = [f"{fit.law.name}: {fit.points} points, objective {fit.objective:.3g}"]
    for name, value in fit.parameters.items():
        error, interval = fit.standard_errors.get(name), fit.intervals.get(name)
        between = "held" if error is None else f"+- {error:.2g}"
        between = between if interval is None else f"[{interval[0]:.4g}, {interval[1]:.4g}]"
        between += f", {1 / (1 - value):.3g} updates" if name == DECAY.name else ""
        lines.append(f"  {name:<20} {value:>12.6g}  {between}{', weakly identified' if name in fit.weak else ''}")
    return "\n".join(lines)


def loss_text(loss: float, low: float, high: float) -> str:
    """A predicted loss and, where there is one, its band."""
    return f"{loss:.4f}" if np.isnan(low) else f"{loss:.4f} [{low:.4f}, {high:.4f}]"


def cells_text(values: Sequence[float]) -> str:
    """Numbers as cells of a CSV file, empty where they are not known."""
    return ",".join(f"{value:.6g}" if np.isfinite(value) else "" for value in values)


NO_BANDS = "no bands: the law was fitted with --draws 0"


def calibration_text(fit: Fit) -> str:
    """What curves left out say of a fit's bands, as one line."""
    if not fit.has_bands:
        return "  bands: none, by --draws 0"
    if not fit.times_left_out:
        return (
            "  bands: not calibrated, so they leave out the error of the law. That takes three curves or more,"
            " of which any two have points enough for a fit"
        )
    worst = max(fit.left_out, key=lambda name: abs(fit.left_out[name]))
    return (
        f"  bands: widened by {100 * fit.widening:.2g} % of the loss, from {fit.times_left_out} refits without one"
        f" schedule or curve; they hold {fit.coverage:.0%} of new ones like these; largest error at an end:"
        f" {fit.left_out[worst]:+.4f} nats ({worst})"
    )


def errors_text(errors: Errors) -> str:
    """Errors as one line."""
    return ", ".join(f"{name} {value:.5f}" for name, value in asdict(errors).items())


def held_out_text(of_curves: Mapping[str, tuple[Errors, float]]) -> str:
    """Errors on curves that were not fitted: their mean, then each curve with the error at its end."""
    lines = [f"  held out: {errors_text(mean_errors([errors for errors, _ in of_curves.values()]))}"]
    lines += [f"    {name}: mae {errors.mae:.5f}, at the end {end:+.5f}" for name, (errors, end) in of_curves.items()]
    return "\n".join(lines)


def combination_text(name: str, combined: Combination) -> str:
    """A combination as two lines."""
    law = f"{combined.old_weight:.4g} {combined.old} + {combined.new_weight:.4g} {combined.new}"
    left = "" if combined.run_error is None else f", mae {combined.run_error:.5f} on runs left out in turn"
    return f"{name}\n{law}: rmse {combined.error:.5f}{left}"


def shape_text(recipes: Sequence[Recipe]) -> str:
    """What the schedules of recipes have beside their peak and their length, as one line."""
    first, kinds = recipes[0], {recipe.kind for recipe in recipes}
    parts = [f"warm-up over {first.warmup:.4g} of the steps"]
    parts += [f"last rate {first.final:.4g} of the peak"] if kinds - {"constant"} else []
    parts += [f"wsd decays over the last {first.decay:.4g} of the steps"] if "wsd" in kinds else []
    return f"schedules: {', '.join(parts)}"


def choice_text(
    outcomes: Sequence[Outcome],
    shown: int,
    weights: Mapping[str, float],
    laws: Laws,
    length: int | None,
    longest: int,
    critical: Mapping[str, CriticalPoint | None],
) -> str:
    """The best recipes as a table, and what else the laws say.

    Args:
        outcomes: of all recipes that were tried, the best first.
        shown: how many stand in the table.
        weights: of the sum that is made small, by set.
        length: the turning length, updates; None where there is none up to `longest`, or a start was not measured.
        critical: the critical points, by set.
    """
    sets = laws.sets
    heads = "".join(f"{name + ('' if np.isnan(outcomes[0].sets[name].low) else ' (95 %)'):>30}" for name in sets)
    is_sum = list(weights.values()) != [1.0]
    heads += f"{'weighted sum':>15}" if is_sum else ""
    lines = [f"{'schedule':<10}{'peak':>10}{'steps':>9}{'replay':>9}{heads}"]
    for outcome in outcomes[:shown]:
        recipe = outcome.recipe
        cells = ""
        for name in sets:
            predicted = outcome.sets[name]
            cells += f"{loss_text(predicted.loss, predicted.low, predicted.high):>30}"
        cells += f"{outcome.objective:>15.4f}" if is_sum else ""
        cells += f"  from the base of {recipe.start}" if len(laws.starts) > 1 else ""
        cells += "  *" if outcome.beyond else ""
        lines.append(f"{recipe.kind:<10}{recipe.peak:>10.3g}{recipe.steps:>9}{recipe.replay_ratio:>9.4g}{cells}")
    best = outcomes[0]
    lines += [] if all(fit.has_bands for fit in laws.fits.values()) else [NO_BANDS]
    lines += [f"WARNING: no recipe keeps {name} within its bound; the nearest is shown" for name in best.broken]
    lines += [f"WARNING: the upper end of the band breaks the bound on {name}" for name in best.unsure]
    lines += _edges(outcomes)
    further = dict.fromkeys(words for outcome in outcomes[:shown] for words in outcome.beyond)
    lines += [f"WARNING: extrapolates: {words}" for words in best.beyond]
    lines += [f"* extrapolates: {words}" for words in further if words not in best.beyond]
    if further:
        lines += [_error_beyond(laws, name) for name in sets]
    if length is not None:
        since = f" from step {laws.fitted.first_step} on" if laws.fitted.first_step > 1 else ""
        beyond = f", beyond the {laws.fitted.steps} that were fitted" if length > laws.fitted.steps else ""
        never = f"the weighted loss is never above its start{since}"
        lines.append(never if length == 0 else f"turning length: {length} steps{beyond}")
    elif any(laws.start_of(best.recipe).losses.get(name) is None for name in weights):
        lines.append("turning length: not known, as the loss before the first update was not measured")
    else:
        lines.append(f"turning length: none; after {longest} steps the weighted loss is above its start")
    for name, point in critical.items():
        weak = "not identified by these curves (B, beta or L0 weakly identified)"
        lines.append(f"critical point of {name}: {weak if point is None else _critical_text(point)}")
    for name, start in laws.starts.items():
        potential = start.base.loss_potential
        chosen = " (chosen)" if len(laws.starts) > 1 and name == best.recipe.start else ""
        share = "not known" if potential is None else f"{100 * potential:.3g} %"
        lines.append(f"loss potential of the base of {name}{chosen}: {share}")
    return "\n".join(lines)


def _edges(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each choice whose best value is at an end of those that were tried; a replay ratio ends at 0 and 1."""
    lines = []
    for name, words in (("replay_ratio", "replay ratio"), ("peak", "peak rate")):
        tried = {getattr(outcome.recipe, name) for outcome in outcomes}
        value = getattr(outcomes[0].recipe, name)
        if len(tried) > 1 and value in (min(tried), max(tried)) and not (name == "replay_ratio" and value in (0, 1)):
            end = "lowest" if value == min(tried) else "highest"
            lines.append(f"NOTE: the best {words}, {value:.4g}, is the {end} that was tried: the best may lie beyond")
    return lines


def _critical_text(point: CriticalPoint) -> str:
    interval = "" if point.low is None else f" [{point.low:.4f}, {point.high:.4f}]"
    return f"{point.loss:.4f}{interval} nats"


def _error_beyond(laws: Laws, name: str) -> str:
    """What is known of a set's error where nothing was fitted."""
    error = laws.error_left_out(name)
    known = "was not measured" if error is None else f"was {error:.4f} nats at the end of the worst schedule left out"
    return f"  the error of {name} {known}; that of an extrapolation may be larger"


def repetition_text(recipe: Recipe, domain_tokens: float, tokens_per_step: float) -> str:
    """How often a recipe reads its new text, and what that is worth."""
    read = recipe.steps * tokens_per_step * (1 - recipe.replay_ratio)
    epochs, worth = read / domain_tokens, effective_unique_tokens(int(domain_tokens), int(read))
    line = f"the new text is read {epochs:.2g} times"
    if epochs <= 1:
        return line
    worse = f"WARNING: {line}: worth {worth / read:.0%} of as many fresh tokens (arXiv:2305.16264)"
    return f"{worse}; the curves do not show it" if epochs > CHEAP_EPOCHS else f"{line}: almost as good as fresh"


def outcome_document(outcome: Outcome) -> dict[str, Any]:
    """An outcome for choice.json."""
    return asdict(outcome)
