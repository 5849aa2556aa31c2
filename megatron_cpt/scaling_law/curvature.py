"""What the curvature at an optimum tells of each parameter, and along what the curves tell nothing.

The sandwich of M-estimation: curvature from the points inside delta, spread from all slopes. Where it is singular only
the flat directions are left out: a parameter that has no part in them keeps its standard error, one that has is open.
"""

from dataclasses import dataclass

import numpy as np

from megatron_cpt.scaling_law.problem import Problem

FLAT = 1e-13
"""Of the largest curvature, columns scaled alike: below it a direction is flat to rounding."""
OPEN = 1e-3
"""Part of the flat directions from which a parameter is open."""


@dataclass(frozen=True)
class Curvature:
    """Of a problem at an optimum, over its free parameters and in the units of the search."""

    errors: np.ndarray
    """float64 [parameters]: standard errors; infinite where a parameter is open or at a bound."""
    directions: np.ndarray
    """float64 [parameters, directions]: those that are independent of each other. A parameter at a bound has no
    part in them."""
    lengths: np.ndarray
    """float64 [directions]: one standard error along each; infinite where it is flat."""


def curvature_at(problem: Problem, vector: np.ndarray) -> Curvature:
    """The curvature at a vector; residuals are taken as independent."""
    residuals = problem.residuals(vector)
    jacobian = problem.jacobian(vector)[: len(residuals)]
    delta = problem.method.huber_delta
    inside = np.abs(residuals) <= delta
    slopes = np.clip(residuals, -delta, delta)
    used = np.flatnonzero(~problem.at_bound(vector))
    norms = np.linalg.norm(jacobian[:, used], axis=0)
    scale = np.where(norms > 0, norms, 1.0)
    scaled = jacobian[:, used] / scale
    values, axes = np.linalg.eigh(scaled.T @ (scaled * inside[:, None]))
    flat = values <= FLAT * max(float(values.max(initial=0.0)), FLAT)
    # Along the axes, where the curvature is diagonal: inverse, spread, inverse.
    inverse = np.where(flat, 0.0, 1 / np.where(flat, 1.0, values))
    turned = scaled @ axes
    covariance = inverse[:, None] * ((turned * slopes[:, None] ** 2).T @ turned) * inverse
    errors = np.full(len(vector), np.inf)
    errors[used] = np.sqrt(np.maximum(np.einsum("ik,kl,il->i", axes, covariance, axes), 0)) / scale
    errors[used[np.linalg.norm(axes[:, flat], axis=1) > OPEN]] = np.inf
    directions = np.zeros((len(vector), len(used)))
    directions[used] = axes / scale[:, None]
    return Curvature(errors, directions, np.where(flat, np.inf, np.sqrt(np.maximum(np.diag(covariance), 0))))
