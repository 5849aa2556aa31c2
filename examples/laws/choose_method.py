"""How the laws are fitted, chosen on training curves alone, by how well they predict each other and their own ends.

    python examples/laws/choose_method.py FOLDER...

Each folder holds the curves of one model size as CSV files (step, lr, loss), those of arXiv:2503.12811 as its
repository has them. Only cosine_24000, constant_24000 and wsdcon_9 are opened. A law is asked for other schedules and
for longer runs, so a candidate is scored on both: each curve left out and predicted from the others, and the later half
of each predicted from the first halves of all. The score is the mean absolute error over sizes, curves, both questions
and both laws; the least wins, and is what the defaults of method.py and the warm-up of the annealing law in
pretraining.py are.
"""

import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from megatron_cpt.scaling_law.curves import read_csv
from megatron_cpt.scaling_law.fit import forward_errors, left_out_errors
from megatron_cpt.scaling_law.laws import ANNEALING, MULTI_POWER, annealing_with_warmup, one_by_one
from megatron_cpt.scaling_law.problem import Method

TRAINING = ("cosine_24000", "constant_24000", "wsdcon_9")
WARMUP = 2160
"""Updates before the first row of the files."""
DELTAS = (3e-4, 1e-3, 3e-3, 1e-2)
PRIOR_POINTS = (0, 25, 100, 400, 1600, 6400)
POINTS = (None, 60)
"""Of each curve: all, or so many, evenly in the logarithm of the updates."""


def main() -> None:
    """A line for each candidate, the chosen one last."""
    sizes = [[read_csv(Path(folder) / f"{name}.csv", WARMUP) for name in TRAINING] for folder in sys.argv[1:]]
    with_warmup = replace(ANNEALING, exact=annealing_with_warmup, quick=one_by_one(annealing_with_warmup))
    scores: dict[tuple[float, int, int | None, bool], float] = {}
    annealing: dict[tuple[float, int | None, bool], list[float]] = {}
    for delta, points, counted in product(DELTAS, POINTS, (False, True)):
        method, law = Method(delta, 0, points), with_warmup if counted else ANNEALING
        annealing[delta, points, counted] = errors_of(law, sizes, method)
        told(f"annealing, warm-up {'counted' if counted else 'left out'}", method, annealing[delta, points, counted])
    for delta, weight, points in product(DELTAS, PRIOR_POINTS, POINTS):
        method = Method(delta, weight, points)
        errors = errors_of(MULTI_POWER, sizes, method)
        told("multi-power", method, errors)
        for counted in (False, True):
            both = [*errors, *annealing[delta, points, counted]]
            scores[delta, weight, points, counted] = float(np.mean(both))
    delta, weight, points, counted = min(scores, key=lambda candidate: scores[candidate])
    words = "counted" if counted else "left out"
    print(
        f"chosen: {Method(delta, weight, points)}, warm-up {words} in S2: {scores[delta, weight, points, counted]:.5f}"
    )


def errors_of(law, sizes, method: Method) -> list[float]:
    """Of every curve of every size, left out; then of every later half."""
    left_out = [error for curves in sizes for error in left_out_errors(law, curves, method)]
    return left_out + [error for curves in sizes for error in forward_errors(law, curves, method)]


def told(law: str, method: Method, errors: list[float]) -> None:
    """One line."""
    each = ", ".join(f"{error:.5f}" for error in errors)
    half = len(errors) // 2
    left_out, later = np.mean(errors[:half]), np.mean(errors[half:])
    print(f"{law}, {method}: left out {left_out:.5f}, later half {later:.5f} ({each})", flush=True)


if __name__ == "__main__":
    main()
