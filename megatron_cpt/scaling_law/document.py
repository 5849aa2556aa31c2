"""law.json: the fitted laws of the validation sets of some runs, with what they were fitted on."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.scaling_law.candidates import LAWS
from megatron_cpt.scaling_law.choose import Base, Fitted, Laws
from megatron_cpt.scaling_law.combination import Combination
from megatron_cpt.scaling_law.fit import Fit
from megatron_cpt.scaling_law.method import Method
from megatron_cpt.scaling_law.parameters import Law
from megatron_cpt.scaling_law.points import Curve


def laws_of(
    fits: Mapping[str, Fit],
    curves: Mapping[str, Sequence[Curve]],
    combinations: Mapping[str, Combination] | None = None,
) -> Laws:
    """The fits of validation sets with base, range and start of the curves they were made from.

    A start is the mean over the runs that measured it; the base is that of the first curve.
    """
    every = [curve for found in curves.values() for curve in found]
    starts = {
        name: [curve.start_loss for curve in found if curve.start_loss is not None] for name, found in curves.items()
    }
    ratios = [1 - curve.domain_share for curve in every]
    peaks = [float(curve.rates.max()) for curve in every]
    first = every[0]
    return Laws(
        fits=dict(fits),
        start_losses={name: float(np.mean(values)) if values else None for name, values in starts.items()},
        base=Base(
            first.base_forward_area,
            first.base_annealing_area,
            first.base_peak_rate,
            first.base_final_rate,
            first.model_size,
        ),
        fitted=Fitted(
            replay_ratio=(min(ratios), max(ratios)),
            peak=(min(peaks), max(peaks)),
            steps=max(int(curve.steps[-1]) for curve in every),
            forward_area=max(float(curve.rates.sum()) for curve in every),
        ),
        combinations=dict(combinations or {}),
    )


def to_document(laws: Laws) -> dict[str, Any]:
    """The content of law.json."""
    return {
        "sets": {name: fit_to_document(fit) for name, fit in laws.fits.items()},
        "starts": laws.start_losses,
        "combinations": {name: asdict(combined) for name, combined in laws.combinations.items()},
        "base": asdict(laws.base),
        "fitted": asdict(laws.fitted),
    }


def read_laws(path: Path) -> Laws:
    """The laws of a law.json. Raises BadInput for a file that is none."""
    try:
        content = orjson.loads(path.read_bytes())
        fitted = content["fitted"]
        return Laws(
            fits={name: fit_of_document(part, LAWS[part["law"]]) for name, part in content["sets"].items()},
            start_losses=dict(content["starts"]),
            base=Base(**content["base"]),
            fitted=Fitted(
                tuple(fitted["replay_ratio"]), tuple(fitted["peak"]), fitted["steps"], fitted["forward_area"]
            ),
            combinations={name: Combination(**part) for name, part in content["combinations"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        fault = Fault(str(path), "is no fitted law.", "Give a law.json written by `megatron-cpt law fit`.")
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
    )
