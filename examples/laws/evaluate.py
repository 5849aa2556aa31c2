"""Fits the law to the runs of study.py and says how far it is from those it has not seen: STUDY/errors.json, .png.

    python examples/laws/evaluate.py [STUDY]

1. Another schedule: fitted on constant and cosine at three replay ratios, asked for wsd at the same ratios.
2. Another ratio: the same fit, asked for cosine at ratios that it has not seen.
3. The replay ratio: fitted on the grid of three schedules and three ratios, asked which of six ratios is best for a
   weighted sum of both losses; held against the measured sweep over two seeds.
4. The forecast: the end of every run from its first 30, 50 and 70 %, by its own records alone.
"""

import sys
from itertools import product
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from megatron_cpt.runs.folder import write_json
from megatron_cpt.scaling_law.continual import CONTINUAL
from megatron_cpt.scaling_law.curves import Curve, read_run
from megatron_cpt.scaling_law.fit import Fit, errors_on, fit_law
from megatron_cpt.scaling_law.forecast import forecast

GRID_RATIOS = (0.0, 0.05, 0.25)
SWEEP_RATIOS = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5)
SEEDS = (1, 2)
WEIGHTS = (0.1, 0.3, 0.5)
"""Of the general loss; the rest is the domain's."""
LEAST_DIFFERENCE = 0.005
"""Nats below which two recipes count as equal."""
SHARES = (0.3, 0.5, 0.7)
"""Of a run, from which its end is forecast."""
STARTS = 48

# Two forms of what replay leaves of the shift: the bend of arXiv:2505.07796 Eq. 8, and with it the effective
# capacity of arXiv:2502.06042.
FORMS = {"bend": (), "bend and injection": ("injection_gain", "injection_exponent")}


def main() -> None:
    """Prints a line for each result."""
    study = Path(sys.argv[1] if len(sys.argv) > 1 else "study")
    result: dict[str, dict] = {}
    chosen: dict[str, dict[str, Fit]] = {}
    figure = Figure(figsize=(11, 4.2 * len(FORMS)), layout="constrained")
    panels = figure.subplots(len(FORMS), 2)
    for row, (form, freed) in enumerate(FORMS.items()):
        chosen[form] = {}
        for column, name in enumerate(("general", "domain")):
            fitted = {(kind, ratio): curve(study, kind, ratio, 1, name) for kind in ("constant", "cosine")
                      for ratio in GRID_RATIOS}  # fmt: skip
            wsd = {("wsd", ratio): curve(study, "wsd", ratio, 1, name) for ratio in GRID_RATIOS}
            unseen = {("cosine", ratio): curve(study, "cosine", ratio, 1, name) for ratio in SWEEP_RATIOS
                      if ratio not in GRID_RATIOS}  # fmt: skip
            fit = fit_law(CONTINUAL, list(fitted.values()), freed=freed, starts=STARTS)
            result[f"{form}, {name}"] = {
                what: {f"{kind} {ratio}": error(fit, item) for (kind, ratio), item in curves.items()}
                for what, curves in (("fitted", fitted), ("another schedule", wsd), ("another ratio", unseen))
            }
            draw(panels[row][column], fit, fitted | wsd | unseen, f"{name}, {form}")
            every = [*fitted.values(), *wsd.values()]
            chosen[form][name] = fit_law(CONTINUAL, every, freed=freed, starts=STARTS)
    result["forecast"] = forecasts(study)
    result["replay ratio"] = {form: choices(study, fits) for form, fits in chosen.items()}
    write_json(study / "errors.json", result)
    figure.savefig(study / "errors.png", dpi=80)
    for name, content in result.items():
        print(name)
        for what, values in content.items():
            print("  ", what, values)


def curve(study: Path, kind: str, ratio: float, seed: int, name: str) -> Curve:
    """The losses of one validation set along one run."""
    return read_run(study / "runs" / f"{kind}-r{ratio:g}-s{seed}", name)


def error(fit: Fit, item: Curve) -> dict[str, float]:
    """Mean absolute error along the run, and predicted minus measured at its end, in nats."""
    end = float(fit.predict(item)[-1] - item.losses[-1])
    return {"mae": round(errors_on(fit, item).mae, 4), "end": round(end, 4)}


def forecasts(study: Path) -> dict[str, dict]:
    """By the share of the run that is known: how many are forecast, how far off they are, how many bands hold."""
    runs = [(kind, ratio, 1) for kind in ("cosine", "constant", "wsd") for ratio in GRID_RATIOS]
    runs += [("cosine", ratio, seed) for ratio in SWEEP_RATIOS for seed in SEEDS if (ratio, seed) not in
             [(grid, 1) for grid in GRID_RATIOS]]  # fmt: skip
    told = {}
    for share in SHARES:
        errors, held, widths, count = [], 0, [], 0
        for (kind, ratio, seed), name in product(runs, ("general", "domain")):
            whole = curve(study, kind, ratio, seed, name)
            found = forecast(CONTINUAL, whole.until(round(share * whole.steps[-1])))
            count += 1
            if found.exists:
                errors.append(abs(float(found.middle[-1] - whole.losses[-1])))
                held += bool(found.low[-1] <= whole.losses[-1] <= found.high[-1])
                widths.append(float(found.high[-1] - found.low[-1]))
        told[f"{share:.0%} of the run"] = {
            "forecast": f"{len(errors)} of {count}",
            "within the band": f"{held} of {len(errors)}",
            "mean error": round(float(np.mean(errors)), 4) if errors else None,
            "largest error": round(max(errors), 4) if errors else None,
            "mean width of the band": round(float(np.mean(widths)), 4) if widths else None,
        }
    return told


def choices(study: Path, fits: dict[str, Fit]) -> dict[str, dict]:
    """For each weight: what the law chooses, what the sweep has as best, and what the choice costs."""
    measured = {
        name: np.array([[curve(study, "cosine", r, seed, name).losses[-1] for seed in SEEDS] for r in SWEEP_RATIOS])
        for name in fits
    }
    predicted = {
        name: np.array([fit.predict(curve(study, "cosine", r, 1, name))[-1] for r in SWEEP_RATIOS])
        for name, fit in fits.items()
    }
    told = {}
    for weight in WEIGHTS:
        sums = weight * measured["general"] + (1 - weight) * measured["domain"]
        law = int(np.argmin(weight * predicted["general"] + (1 - weight) * predicted["domain"]))
        best = int(np.argmin(sums.mean(axis=1)))
        # The spread over seeds of the difference between the two: what a seed shares by both runs cancels.
        spread = float(np.std(sums[law] - sums[best], ddof=1)) if law != best else 0.0
        told[f"weight {weight} on general"] = {
            "chosen": SWEEP_RATIOS[law],
            "best": SWEEP_RATIOS[best],
            "cost": round(float(sums.mean(axis=1)[law] - sums.mean(axis=1)[best]), 4),
            "allowed": round(max(LEAST_DIFFERENCE, 2 * spread), 4),
        }
    return told


def draw(axes, fit: Fit, curves: dict[tuple[str, float], Curve], title: str) -> None:
    """Measured losses as dots, the law as lines, dashed where it has not seen the run."""
    for number, ((kind, ratio), item) in enumerate(curves.items()):
        seen = kind != "wsd" and ratio in GRID_RATIOS
        axes.plot(item.steps, item.losses, ".", color=f"C{number % 10}", markersize=4)
        axes.plot(item.steps, fit.predict(item), "-" if seen else "--", color=f"C{number % 10}", linewidth=1.2,
                  label=f"{kind} {ratio:g}")  # fmt: skip
    axes.set(title=title, xlabel="updates", ylabel="loss, nats per token", xscale="log")
    axes.legend(fontsize=7, ncols=2)


if __name__ == "__main__":
    main()
