"""Other laws on the runs of study.py, and forecasts of single runs.

    python -m examples.studies.laws.compare [--results FOLDER]

It reads curves.csv and writes beside it, in nats per token:

1. schedules.csv: laws of the learning rate, fitted to constant, cosine and two stages without replay, both seeds, and
   asked for the three other schedules: error at the end and mean error, against the mean of the seeds.
2. ratios.csv: laws of final losses, fitted to the cosine runs of all replay ratios: mean error on runs left out.
3. forecasts.csv: the end of every run of full length, from its first 30, 50 and 70 %, by its own records alone.
4. variants.csv: the continual law with the lambda of the papers, or fitted to the replay ratios of arXiv:2505.07796
   alone: mean error on schedules and ratios that were not fitted, and the error at the end of each ratio.
5. combinations.csv: the loss of the third set as a weighted sum of the two others (Eq. 6), alone and with a constant,
   fitted to all runs of full length or to those without replay: mean error on runs left out.
"""

import argparse
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import numpy as np

from examples.studies.laws.evaluate import INJECTION, LAW_SETS, RATIOS, Curves, Rows, mean_of_seeds, of_law
from examples.studies.laws.study import ARMS, FITTED, RESULTS, SEEDS, STEPS, UNSEEN, Arm, read_curves
from examples.studies.runs import BATCH, SEQUENCE_LENGTH, write_rows
from megatron_cpt.scaling_law.continual import CONTINUAL, fit_combination
from megatron_cpt.scaling_law.curves import Curve
from megatron_cpt.scaling_law.fit import fit_law
from megatron_cpt.scaling_law.forecast import forecast
from megatron_cpt.scaling_law.laws import ANNEALING, MULTI_POWER, RATE_WEIGHTED
from megatron_cpt.scaling_law.tables import TABLE_LAWS, Table, fits_of_table, left_out_rows

SHARES = (0.3, 0.5, 0.7)
"""Of a run, from which its end is forecast."""


def main() -> None:
    """Prints every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    args = parser.parse_args()
    curves = read_curves(args.results)
    for name, rows in (
        ("schedules", schedule_rows(curves)),
        ("ratios", ratio_rows(curves)),
        ("forecasts", forecast_rows(curves)),
        ("variants", variant_rows(curves)),
        ("combinations", combination_rows(curves)),
    ):
        write_rows(args.results / f"{name}.csv", rows)
        print(name, *(", ".join(f"{key} {value}" for key, value in row.items()) for row in rows), sep="\n  ")


def schedule_rows(curves: Curves) -> Rows:
    """A row for each law of the learning rate and set. The mean error of a law without fault is the noise floor."""
    known = [arm for arm in FITTED if arm.replay == 0]
    unseen = [arm for arm in UNSEEN["another schedule"] if arm.replay == 0]
    rows = []
    for law, name in product((CONTINUAL, ANNEALING, RATE_WEIGHTED, MULTI_POWER), LAW_SETS):
        fit = fit_law(law, [of_law(curves[arm, seed, name]) for arm in known for seed in SEEDS])
        means, floors = zip(*(mean_of_seeds(curves, arm, name) for arm in unseen), strict=True)
        errors = [fit.predict(mean) - mean.losses for mean in means]
        rows.append(
            {"law": law.name, "set": name}
            | {f"end of {arm.schedule}": round(float(error[-1]), 4) for arm, error in zip(unseen, errors, strict=True)}
            | {"mae": round(float(np.mean([np.abs(error).mean() for error in errors])), 4)}
            | {"noise floor": round(float(np.mean(floors)), 4)}
        )
    return rows


def ratio_rows(curves: Curves) -> Rows:
    """A row for each law of final losses and set: mean error on runs left out, and what the mean of all would have."""
    arms = [Arm("cosine", ratio) for ratio in RATIOS if (Arm("cosine", ratio), SEEDS[0], "general") in curves]
    rows = []
    for name in LAW_SETS:
        table = table_of(curves, arms, name)
        others = [np.delete(table.losses, row).mean() for row in range(len(table.losses))]
        rows.append({"law": "the mean of the other runs", "set": name, "mae": mean_of(table.losses - others)})
        for law in TABLE_LAWS:
            rows.append(
                {"law": law, "set": name, "mae": mean_of(left_out_rows(fits_of_table(law, table)[0].law, table))}
            )
    return rows


def table_of(curves: Curves, arms: list[Arm], name: str) -> Table:
    """The final losses of a set, a row a run."""
    runs = [(arm, seed) for arm in arms for seed in SEEDS]
    replay = np.array([arm.replay / 100 for arm, _ in runs])
    columns = {"tokens": np.full(len(runs), float(STEPS * BATCH * SEQUENCE_LENGTH)), "replay_ratio": replay}
    return Table(
        name,
        np.array([curves[(*run, name)].losses[-1] for run in runs]),
        np.array([curves[(*run, name)].start_loss for run in runs]),
        columns,
        tuple(f"{arm.name} {seed}" for arm, seed in runs),
    )


def mean_of(errors: np.ndarray) -> float:
    """The mean absolute error, rounded."""
    return round(float(np.abs(errors).mean()), 4)


def forecast_rows(curves: Curves) -> Rows:
    """A row for each share of a run: how many ends are forecast, how many bands hold them, how far off they are."""
    whole = {key: curve for key, curve in curves.items() if key[0].steps == STEPS and key[2] in LAW_SETS}
    return [forecasts_from(whole, share) for share in SHARES]


def forecasts_from(curves: Curves, share: float) -> Mapping[str, object]:
    """The row of one share."""
    errors, widths, held = [], [], 0
    for curve in curves.values():
        told = forecast(CONTINUAL, curve.until(round(share * curve.steps[-1])))
        if told.exists:
            errors.append(abs(float(told.middle[-1] - curve.losses[-1])))
            widths.append(float(told.high[-1] - told.low[-1]))
            held += bool(told.low[-1] <= curve.losses[-1] <= told.high[-1])
    return {
        "part known": share,
        "runs and sets": len(curves),
        "forecast": len(errors),
        "within the band": held,
        "mean error": round(float(np.mean(errors)), 4) if errors else "",
        "largest error": round(max(errors), 4) if errors else "",
        "mean width": round(float(np.mean(widths)), 4) if widths else "",
    }


PAPERS_LAMBDA, PAPERS_RATIOS = 0.999, (0, 25, 50)
"""What arXiv:2505.07796 fixes; of its replay ratios, 0, 33, 50 and 67 %, those that are near the ones run here."""
VARIANTS = {
    "injection": ({}, INJECTION, FITTED),
    "injection, lambda 0.999": ({"decay": PAPERS_LAMBDA}, INJECTION, FITTED),
    "bend": ({}, (), FITTED),
    "bend, fitted at 0, 25, 50 %": ({}, (), [arm for arm in FITTED if arm.replay in PAPERS_RATIOS]),
}
"""Constants that are held, parameters that are freed, and arms that are fitted."""


def variant_rows(curves: Curves) -> Rows:
    """A row for each variant and set."""
    rows = []
    for (variant, (held, freed, arms)), name in product(VARIANTS.items(), ("general", "domain")):
        known = [of_law(curves[arm, seed, name]) for arm in arms for seed in SEEDS]
        fit = fit_law(CONTINUAL, known, fixed=held, freed=freed)
        row: dict[str, object] = {"variant": variant, "set": name}
        for part in ("another schedule", "another ratio"):
            means = {arm: mean_of_seeds(curves, arm, name)[0] for arm in UNSEEN[part]}
            errors = {arm: fit.predict(mean) - mean.losses for arm, mean in means.items()}
            row[f"mae, {part}"] = round(float(np.mean([np.abs(error).mean() for error in errors.values()])), 4)
            row |= {f"end of {arm.name}": round(float(error[-1]), 4) for arm, error in errors.items()}
        rows.append(row)
    return rows


def combination_rows(curves: Curves) -> Rows:
    """A row for each choice of runs. The noise floor is that of the third set."""
    whole = [arm for arm in ARMS if arm.steps == STEPS and (arm, SEEDS[0], "other") in curves]
    rows: Rows = []
    for runs, arms in {"all": whole, "without replay": [arm for arm in whole if arm.replay == 0]}.items():
        keys = [(arm, seed) for arm in arms for seed in SEEDS]
        sets = [[of_law(curves[(*key, name)]) for key in keys] for name in ("other", "general", "domain")]
        combination = fit_combination("general", "domain", *sets)
        floor = np.mean([mean_of_seeds(curves, arm, "other")[1] for arm in arms])
        rows.append(
            {"runs": runs, "general": round(combination.old_weight, 3), "domain": round(combination.new_weight, 3)}
            | {"mae": round(combination.run_error or 0.0, 4), "mae with a constant": with_constant(*sets)}
            | {"noise floor": round(float(floor), 4)}
        )
    return rows


def with_constant(third: list[Curve], old: list[Curve], new: list[Curve]) -> float:
    """The mean error on runs left out of a weighted sum of two losses and a constant."""
    parts = [
        np.column_stack([a.losses, b.losses, np.ones(len(a.losses)), c.losses])
        for c, a, b in zip(third, old, new, strict=True)
    ]
    errors = []
    for number, part in enumerate(parts):
        rest = np.concatenate([one for other, one in enumerate(parts) if other != number])
        weights = np.linalg.lstsq(rest[:, :3], rest[:, 3], rcond=None)[0]
        errors.append(part[:, :3] @ weights - part[:, 3])
    return mean_of(np.concatenate(errors))


if __name__ == "__main__":
    main()
