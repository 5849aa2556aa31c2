"""How a law should be fitted, asked of the fitted curves alone: each left out in turn and predicted from the rest."""

from collections.abc import Sequence

import numpy as np

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.scaling_law.fit import fit_law
from megatron_cpt.scaling_law.heldout import errors_on
from megatron_cpt.scaling_law.method import Method
from megatron_cpt.scaling_law.parameters import Law
from megatron_cpt.scaling_law.points import Curve

DELTAS = (3e-4, 1e-3, 3e-3, 1e-2)
PRIOR_POINTS = (0, 100, 6400)
STARTS = 48
"""Of each fit."""


def candidates(law: Law) -> list[Method]:
    """What `law fit --cross-validate` chooses from: every delta, and every weight where the law has priors."""
    guided = any(parameter.prior is not None for parameter in law.parameters)
    return [Method(delta, weight) for delta in DELTAS for weight in (PRIOR_POINTS if guided else (0,))]


def left_out_errors(
    law: Law, curves: Sequence[Curve], method: Method, freed: Sequence[str] = (), starts: int = STARTS
) -> list[float]:
    """Mean absolute error on each curve, nats, of the law fitted to the others.

    Raises BadInput for fewer than three curves: of two, one would be all there is to fit.
    """
    if len(curves) < 3:
        rule = "are too few to leave one out."
        raise BadInput(Fault(f"{len(curves)} curves", rule, "Give three or more, of different schedules."))
    errors = []
    for number, left in enumerate(curves):
        others = [curve for other, curve in enumerate(curves) if other != number]
        errors.append(errors_on(fit_law(law, others, freed=freed, starts=starts, method=method), left).mae)
    return errors


def forward_errors(law: Law, curves: Sequence[Curve], method: Method, starts: int = STARTS) -> list[float]:
    """Mean absolute error on the later half of each curve, nats, of the law fitted to the first halves of all."""
    early = [curve.until(int(curve.steps[-1]) // 2) for curve in curves]
    fit = fit_law(law, early, starts=starts, method=method)
    return [errors_on(fit, curve.after(int(curve.steps[-1]) // 2 + 1)).mae for curve in curves]


def best_method(
    law: Law, curves: Sequence[Curve], methods: Sequence[Method], freed: Sequence[str] = ()
) -> tuple[Method, dict[Method, float]]:
    """The method with the least mean error on curves left out, and this error of every candidate, nats."""
    errors = {method: float(np.mean(left_out_errors(law, curves, method, freed))) for method in methods}
    return min(methods, key=lambda method: errors[method]), errors
