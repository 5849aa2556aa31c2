"""Fits the law to the runs of study.py and measures it on those that it has not seen.

    python -m examples.studies.laws.evaluate [--results FOLDER]

It reads curves.csv, writes fits.csv, errors.csv (a row for each set, form of the law and unseen arm) and errors.png
beside it, and prints means; choices.csv too, once every arm is there. Errors are predicted minus the mean of two seeds,
in nats per token. The noise floor is the mean error that a law without fault would have: half of the mean difference of
the two seeds.

`planted` is the same design with losses that the law itself gives, with the constants fitted to the runs and the runs'
own noise. Its errors are those of the fit; what the measured runs have beyond them is the law's.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from examples.studies.laws.study import ARMS, FITTED, PEAK, RESULTS, SEEDS, STEPS, UNSEEN, Arm, read_curves
from examples.studies.runs import write_rows
from megatron_cpt.scaling_law.choose import Laws, Recipe, critical_point, laws_of, turning_length
from megatron_cpt.scaling_law.continual import CONTINUAL
from megatron_cpt.scaling_law.curves import Curve
from megatron_cpt.scaling_law.fit import Fit, fit_law
from megatron_cpt.scaling_law.uncertainty import band, bootstrap, calibrated

LAW_SETS = ("general", "domain", "other")
INJECTION = ("injection_gain", "injection_exponent")
FORMS: dict[str, tuple[tuple[str, ...], list[Arm]]] = {
    "bend": ((), FITTED),
    "injection": (INJECTION, FITTED),
    "two bases": (INJECTION, [*FITTED, Arm("cosine", 0, "stable")]),
}
"""Parameters that are freed, and arms that are fitted. What replay leaves of the shift is the bend of arXiv:2505.07796
Eq. 8, and with `injection` the effective capacity of arXiv:2502.06042 too. Arms from one base alone cannot tell the
effect of its annealing; `two bases` has one from another."""
WEIGHTS = (0.1, 0.3, 0.5)
"""Of the general loss in a choice; the rest is the domain's."""
RATIOS = (0, 1, 2, 5, 10, 25, 35, 50)
PEAKS = (0.5 * PEAK, PEAK, 2 * PEAK)
LENGTHS = (100, 200, 400, STEPS)

Rows = list[dict[str, Any]]


def main() -> None:
    """Prints a line for each result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    args = parser.parse_args()
    curves = read_curves(args.results)
    measured = {arm for arm, _, _ in curves}
    forms = {form: how for form, how in FORMS.items() if measured.issuperset(how[1])}
    fits = {form: {name: fitted(curves, name, *how) for name in LAW_SETS} for form, how in forms.items()}
    errors = [row for form in fits for name in LAW_SETS for row in errors_of(curves, name, form, fits[form][name])]
    for name, fit in fits["injection"].items():
        made = planted(curves, name, fit)
        errors += errors_of(made, name, "planted", fitted(made, name, *FORMS["injection"]))
    whole = measured.issuperset(ARMS)
    choices = [row for form in fits if whole for row in choices_of(curves, form, fits[form])]
    write_rows(args.results / "fits.csv", [row for form in fits for row in parameters_of(form, fits[form])])
    write_rows(args.results / "errors.csv", errors)
    if choices:
        write_rows(args.results / "choices.csv", choices)
    draw(curves, fits["injection"], args.results / "errors.png")
    print_means(errors)
    for row in choices:
        print(", ".join(f"{key} {value}" for key, value in row.items()))


Curves = Mapping[tuple[Arm, int, str], Curve]
"""By arm, seed and validation set."""


def fitted(curves: Curves, name: str, freed: Sequence[str], arms: Sequence[Arm]) -> Fit[Curve]:
    """The law of a set, fitted to both seeds from the end of the transient on, its bands calibrated."""
    known = [of_law(curves[arm, seed, name]) for arm in arms for seed in SEEDS]
    fit = bootstrap(fit_law(CONTINUAL, known, freed=freed), known)
    return calibrated(fit, known, freed)


def of_law(curve: Curve) -> Curve:
    """The points that the law describes."""
    return curve.after(curve.transient)


def mean_of_seeds(curves: Curves, arm: Arm, name: str) -> tuple[Curve, float]:
    """The mean of the seeds' curves, and the noise floor: the mean error of a law without fault, nats."""
    found = [of_law(curves[arm, seed, name]) for seed in SEEDS]
    losses = np.array([curve.losses for curve in found])
    return replace(found[0], losses=losses.mean(axis=0)), float(np.abs(np.diff(losses, axis=0)).mean()) / len(SEEDS)


def planted(curves: Curves, name: str, fit: Fit[Curve]) -> Curves:
    """The curves of a set as a law would have them: its losses, and the difference of the seeds of some arm.

    Points before the law's are left as they are; they are not fitted.
    """
    generator = np.random.default_rng(0)
    differences: dict[int, list[np.ndarray]] = {}
    arms = dict.fromkeys(arm for arm, _, _ in curves)
    for arm in arms:
        pair = [curves[arm, seed, name].losses for seed in SEEDS]
        differences.setdefault(len(pair[0]), []).append((pair[0] - pair[1]) / 2**0.5)
    made = {}
    for arm in arms:
        for seed in SEEDS:
            curve = curves[arm, seed, name]
            noise = generator.choice(np.array(differences[len(curve.losses)])) * generator.choice([-1, 1])
            made[arm, seed, name] = replace(curve, losses=fit.predict(curve) + noise)
    return made


def errors_of(curves: Curves, name: str, form: str, fit: Fit[Curve]) -> Rows:
    """A row for each arm: error at the end, mean error, noise floor, difference of the seeds, ends in the band."""
    rows = []
    for part, arms in ({"fitted": FITTED} | UNSEEN).items():
        for arm in arms:
            if (arm, SEEDS[0], name) not in curves:
                continue
            mean, floor = mean_of_seeds(curves, arm, name)
            predicted = fit.predict(mean)
            ends = [float(curves[arm, seed, name].losses[-1]) for seed in SEEDS]
            around = band(fit, mean)
            low, high = float(around.low[-1]), float(around.high[-1])
            rows.append(
                {
                    "form": form,
                    "set": name,
                    "part": part,
                    "arm": arm.name,
                    "end": round(float(predicted[-1] - mean.losses[-1]), 4),
                    "mae": round(float(np.abs(predicted - mean.losses).mean()), 4),
                    "noise floor": round(floor, 4),
                    "seeds apart at the end": round(abs(ends[0] - ends[1]), 4),
                    "width of the band at the end": round(high - low, 4),
                    "ends within the band": sum(low <= end <= high for end in ends),
                }
            )
    return rows


def print_means(errors: Rows) -> None:
    """Of each form, set and part: the largest error at an end, means, and how many ends the band holds."""
    for key in dict.fromkeys((row["form"], row["set"], row["part"]) for row in errors):
        rows = [row for row in errors if (row["form"], row["set"], row["part"]) == key]
        largest = max((row["end"] for row in rows), key=abs)
        mae, floor = (np.mean([row[name] for row in rows]) for name in ("mae", "noise floor"))
        held = sum(row["ends within the band"] for row in rows)
        width = np.mean([row["width of the band at the end"] for row in rows])
        print(
            f"{', '.join(key)}: end at most {largest:+.4f}, mae {mae:.4f}, noise floor {floor:.4f} "
            f"(ratio {mae / floor:.2f}), {held} of {len(rows) * len(SEEDS)} ends within the band, "
            f"which is {width:.4f} wide"
        )


def draw(curves: Curves, fits: Mapping[str, Fit[Curve]], path: Path) -> None:
    """Means of the seeds' losses (dots) and the law (lines) for schedules and ratios that it has not seen."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    for row, name in zip(panels, ("general", "domain"), strict=True):
        for axes, part in zip(row, ("another schedule", "another ratio"), strict=True):
            for number, arm in enumerate(arm for arm in UNSEEN[part] if (arm, SEEDS[0], name) in curves):
                mean, _ = mean_of_seeds(curves, arm, name)
                colour = f"C{number}"
                axes.plot(mean.steps, mean.losses, ".", color=colour, markersize=4)
                axes.plot(mean.steps, fits[name].predict(mean), color=colour, linewidth=1.2, label=arm.name)
            axes.set_title(f"{name}: {part}")
            axes.set_ylabel("loss, nats per token")
            axes.legend(fontsize=8)
            axes.grid(alpha=0.3)
    for axes in panels[-1]:
        axes.set_xlabel("updates")
    figure.savefig(path, dpi=80)


def choices_of(curves: Curves, form: str, fits: Mapping[str, Fit[Curve]]) -> Rows:
    """What the law says on the questions of a recipe, beside what the runs say."""
    laws = laws_of(fits, {name: [curves[arm, seed, name] for arm in FITTED for seed in SEEDS] for name in LAW_SETS})
    rows = []
    for weight in WEIGHTS:
        ratios = {ratio: Arm("cosine", ratio) for ratio in RATIOS}
        peaks = {peak: Arm("cosine", 25, peak=peak) for peak in PEAKS}
        rows.append(choice(curves, fits, form, f"replay, weight {weight} on general", ratios, weight))
        rows.append(choice(curves, fits, form, f"peak, weight {weight} on general", peaks, weight))
        rows.append(turning(curves, laws, form, weight))
    for name in LAW_SETS:
        for replay in (0, 25):
            rows.append(potential(curves, fits[name], form, name, replay))
        rows.append(critical(curves, fits[name], form, name))
    return rows


def choice(
    curves: Curves, fits: Mapping[str, Fit[Curve]], form: str, question: str, arms: Mapping[Any, Arm], weight: float
) -> dict[str, Any]:
    """The arm with the least weighted sum of losses by the law and by the runs, and what the law's choice costs.

    Allowed is twice the standard error of the difference between the two, over seeds.
    """
    weights = {"general": weight, "domain": 1 - weight}
    predicted = [
        sum(w * float(fits[name].predict(curves[arm, SEEDS[0], name])[-1]) for name, w in weights.items())
        for arm in arms.values()
    ]
    sums = np.array(
        [
            [sum(w * curves[arm, seed, f"{name}-more"].losses[-1] for name, w in weights.items()) for seed in SEEDS]
            for arm in arms.values()
        ]
    )
    chosen, best = int(np.argmin(predicted)), int(np.argmin(sums.mean(axis=1)))
    difference = sums[chosen] - sums[best]
    return {
        "form": form,
        "question": question,
        "law": list(arms)[chosen],
        "runs": list(arms)[best],
        "off by": round(float(difference.mean()), 4),
        "allowed": round(2 * float(np.std(difference, ddof=1)) / len(SEEDS) ** 0.5, 4),
    }


def turning(curves: Curves, laws: Laws, form: str, weight: float) -> dict[str, Any]:
    """The turning length of cosine without replay, by the law and between the lengths that were run."""
    weights = {"general": weight, "domain": 1 - weight}
    like = Recipe("cosine", PEAK, STEPS, 0.0, warmup=24 / STEPS)
    rises = [
        sum(
            w * float(np.mean([end_and_start(curves, length, seed, name) for seed in SEEDS]))
            for name, w in weights.items()
        )
        for length in LENGTHS
    ]
    above = [length for length, rise in zip(LENGTHS, rises, strict=True) if rise > 0]
    beyond = [length for length in LENGTHS if not above or length > above[-1]]
    said = turning_length(laws, weights, like, 100 * STEPS)
    runs = f"{above[-1] if above else 0} to {beyond[0]}" if beyond else f"beyond {STEPS}"
    return {
        "form": form,
        "question": f"turning length, weight {weight} on general",
        "law": "never" if said is None else said,
        "runs": runs,
        "off by": "",
        "allowed": "",
    }


def end_and_start(curves: Curves, length: int, seed: int, name: str) -> float:
    """Loss at the end minus loss before the first update of cosine without replay, nats."""
    curve = curves[Arm("cosine", 0, steps=length), seed, f"{name}-more"]
    assert curve.start_loss is not None
    return float(curve.losses[-1] - curve.start_loss)


def potential(curves: Curves, fit: Fit[Curve], form: str, name: str, replay: float) -> dict[str, Any]:
    """Final loss from the base before its decay, minus that from the base after it."""
    arms = [Arm("cosine", replay, "stable"), Arm("cosine", replay)]
    by_law = [float(fit.predict(curves[arm, SEEDS[0], name])[-1]) for arm in arms]
    by_runs = np.array([[curves[arm, seed, name].losses[-1] for seed in SEEDS] for arm in arms])
    difference = by_runs[0] - by_runs[1]
    return {
        "form": form,
        "question": f"loss potential, {name}, replay {replay} %",
        "law": round(by_law[0] - by_law[1], 4),
        "runs": round(float(difference.mean()), 4),
        "off by": round(by_law[0] - by_law[1] - float(difference.mean()), 4),
        "allowed": round(2 * float(np.std(difference, ddof=1)) / len(SEEDS) ** 0.5, 4),
    }


def critical(curves: Curves, fit: Fit[Curve], form: str, name: str) -> dict[str, Any]:
    """The critical point with its interval, beside the loss of the base."""
    point = critical_point(fit)
    said = "not determined" if point is None else f"{point.loss:.3f} ({point.low:.3f} to {point.high:.3f})"
    start = curves[FITTED[0], SEEDS[0], name].start_loss
    question = f"critical point, {name}; `runs` is the loss of the base"
    return {"form": form, "question": question, "law": said, "runs": start, "off by": "", "allowed": ""}


def parameters_of(form: str, fits: Mapping[str, Fit[Curve]]) -> Iterable[dict[str, Any]]:
    """The fitted constants with 95 % intervals."""
    for name, fit in fits.items():
        for parameter, value in fit.parameters.items():
            low, high = fit.intervals.get(parameter, (value, value))
            kind = "held" if parameter in fit.held else "weak" if parameter in fit.weak else "fitted"
            yield {"form": form, "set": name, "parameter": parameter, "value": value, "low": low, "high": high,
                   "kind": kind}  # fmt: skip


if __name__ == "__main__":
    main()
