"""The gap of each validation set as far as a run has come: what TensorBoard shows while it goes on."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from megatron_cpt.gap.curves import loss_curves
from megatron_cpt.gap.figures import rises

KEPT = ("kind", "step", "tokens", "set", "role", "identity", "loss")


class RunningGap:
    """Takes the validation records of a run one by one."""

    def __init__(self) -> None:
        self._marks: dict[str, list[dict[str, Any]]] = {}

    def add(self, record: Mapping[str, Any]) -> dict[str, float]:
        """The figures of the record's set up to it, by name.

        None without a baseline on its sequences, or where a loss is not finite.
        """
        marks = self._marks.setdefault(record["set"], [])
        marks.append({name: record[name] for name in KEPT} | {"baseline": record.get("baseline")})
        (curve,) = loss_curves(marks)
        compared = curve.has_baseline and curve.identity == record["identity"]
        if not compared or len(curve.steps) < 2 or not np.isfinite(curve.losses).all():
            return {}
        rise = rises(curve)
        depth, final = float(rise.max()), float(rise[-1])
        return {
            "change": final,
            "depth": depth,
            "transient": depth - max(final, 0.0),
            "area": float(np.trapezoid(np.maximum(rise, 0), curve.tokens)),
        }
