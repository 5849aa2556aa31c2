"""The study of the law of continual pretraining: a base on general text, continued on a domain in 54 runs.

    python -m examples.studies.laws.study GENERAL.jsonl DOMAIN.jsonl OTHER.jsonl [--output STUDY] [--jobs 2]

Each file holds one JSON object with a `text` a line and may be compressed (.zst). OTHER is text of a third kind that
no run is trained on. A Llama of 4 layers of 64 (0.18M parameters without embeddings) is pretrained on GENERAL for
3,500 steps of 4,096 tokens and continued on DOMAIN for 800. Runs of one replay ratio and seed read the same text in the
same order and are equal until their learning rates part.

What a run measured is added to results/curves.csv as soon as it has ended. Called again, also on another machine with
the same texts, the study goes on with the runs that are not there, from the bases in results/bases. evaluate.py reads
that file.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from examples.studies.runs import (
    CurveRow,
    make_bases,
    prepare,
    read_rows,
    run_sections,
    train_missing,
)
from megatron_cpt.config.load import config_from_dict
from megatron_cpt.config.schedule import learning_rate
from megatron_cpt.quickstart.base_folder import SMALL_LLAMA
from megatron_cpt.scaling_law.curves import Curve, read_run

RESULTS = Path(__file__).parent / "results"
MODEL = SMALL_LLAMA | {"hidden_size": 64, "intermediate_size": 176, "head_dim": 16, "vocab_size": 2048}
BASE_STEPS, BASE_PEAK, BASE_DECAY = 3500, 4e-3, 700
"""WSD; the decay in steps."""
STEPS, PEAK, WARMUP = 800, 2e-3, 24
BASES = {"decayed": BASE_STEPS, "stable": BASE_STEPS - BASE_DECAY}
"""Step of the base that runs begin from: after its decay and before it."""


@dataclass(frozen=True)
class Arm:
    """One continuation."""

    schedule: str
    """A key of SCHEDULES."""
    replay: float
    """Share of general text, in per cent."""
    base: str = "decayed"
    """A key of BASES."""
    peak: float = PEAK
    """Peak learning rate."""
    steps: int = STEPS

    @property
    def name(self) -> str:
        """Of its run folders, before the seed."""
        other = f"-peak-{self.peak:g}" * (self.peak != PEAK) + f"-{self.steps}-steps" * (self.steps != STEPS)
        return f"{self.schedule}-replay-{self.replay:g}{other}{f'-{self.base}' * (self.base != 'decayed')}"


def schedule(arm: Arm) -> dict[str, Any]:
    """The `schedule` section of an arm."""
    warm = {"peak_lr": arm.peak, "warmup": f"{WARMUP} steps"}
    kind, _, decay = arm.schedule.partition("-")
    if kind == "two":  # stages: the second has 30 % of the peak
        pieces = [{"from_tokens": f"{arm.steps // 2} steps", "lr": 0.3 * arm.peak}]
        return warm | {"kind": "piecewise", "pieces": pieces}
    if kind == "wsd":
        return warm | {"kind": "wsd", "decay": f"{decay} steps", "final_lr": 0.0}
    return warm | {"kind": kind} | ({} if kind == "constant" else {"final_lr": 0.1 * arm.peak})


FITTED = [
    *(Arm(kind, 0) for kind in ("constant", "cosine", "two-stages")),
    *(Arm(kind, replay) for replay in (1, 5, 25, 50) for kind in ("constant", "cosine")),
]
"""What the laws are fitted on."""
UNSEEN = {
    "another schedule": [Arm(kind, replay) for replay in (0, 25) for kind in ("wsd-100", "wsd-250", "linear")],
    "another ratio": [Arm("cosine", replay) for replay in (2, 10, 35)],
    "another peak": [Arm("cosine", 25, peak=PEAK * factor) for factor in (0.5, 2)],
    "another base": [Arm("cosine", replay, "stable") for replay in (0, 25)],
    "another length": [Arm("cosine", 0, steps=steps) for steps in (100, 200, 400)],
}
"""What they are asked for."""
SEEDS = (1, 2)
SETS = ("general", "domain", "other", "general-more", "domain-more")
"""Validation sets of every run. The last two are measured at both ends alone, on more text."""
ARMS = [*FITTED, *(arm for arms in UNSEEN.values() for arm in arms)]


def main() -> None:
    """Text, the base, then every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("general", "domain", "other"):
        parser.add_argument(name, type=Path, help="JSON lines; docs/claims.md names those of the results")
    parser.add_argument("--output", type=Path, default=Path("study"), metavar="STUDY")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each (default: 2)")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    args = parser.parse_args()
    study = args.output
    (study / "configs").mkdir(parents=True, exist_ok=True)
    corpora = {"general": args.general, "domain": args.domain, "other": args.other}
    prepare(study, corpora, ("general", "domain"), MODEL)
    make_bases(study, base_config(study), BASES, args.results)
    curves, bases = args.results / "curves.csv", args.results / "bases"
    configs = {run_name(arm, seed): run_config(study, bases, arm, seed) for arm in ARMS for seed in SEEDS}
    train_missing(study, curves, configs, args.jobs, rows_of)


def run_name(arm: Arm, seed: int) -> str:
    """Of its run folder."""
    return f"{arm.name}-seed-{seed}"


FIELDS = ("base_forward_area", "base_annealing_area", "base_peak_rate", "base_final_rate", "model_size")
"""Of a curve, beside its losses: what the configuration does not say."""


def rows_of(study: Path, name: str) -> Iterator[CurveRow]:
    """What a run measured, as rows of the results: every loss, the history of its base and the size."""
    for set_name in SETS:
        curve = read_run(study / "runs" / name, set_name)
        assert curve.start_loss is not None  # every set is evaluated before the first update
        yield name, f"loss {set_name}", 0, curve.start_loss
        for step, loss in zip(curve.steps.tolist(), curve.losses.tolist(), strict=True):
            yield name, f"loss {set_name}", step, loss
    for field in FIELDS:
        value = getattr(curve, field)
        if value is not None:
            yield name, field, 0, value


def read_curves(results: Path) -> dict[tuple[Arm, int, str], Curve]:
    """Every loss curve of the arms that all seeds have run, by arm, seed and validation set.

    Ends the program where an arm is missing that the laws are fitted on; says which others are.
    """
    values = values_of(results)
    missing = [arm for arm in ARMS for seed in SEEDS if (run_name(arm, seed), f"loss {SETS[0]}") not in values]
    if missing:
        print(f"not in {results / 'curves.csv'}: {', '.join(arm.name for arm in dict.fromkeys(missing))}")
    if any(arm in FITTED for arm in missing):
        sys.exit("The laws are fitted on some of these: run the study to its end.")
    arms = [arm for arm in ARMS if arm not in missing]
    return {(arm, seed, name): curve_of(values, arm, seed, name) for arm in arms for seed in SEEDS for name in SETS}


Values = dict[tuple[str, str], dict[int, float]]
"""By run and series, then by step."""


def values_of(results: Path) -> Values:
    """What is in curves.csv."""
    values: Values = {}
    for run, series, step, value in read_rows(results / "curves.csv"):
        values.setdefault((run, series), {})[step] = value
    return values


def curve_of(values: Values, arm: Arm, seed: int, name: str) -> Curve:
    """A curve as `read_run` reads it from the folder of the run, its losses with six digits."""
    run = run_name(arm, seed)
    config = config_from_dict(run_config(Path(), Path(), arm, seed))
    size = config.tokens_per_step
    rates = [learning_rate(config.schedule, step * size, arm.steps * size, size) for step in range(1, arm.steps + 1)]
    losses = values[run, f"loss {name}"]
    steps = sorted(step for step in losses if step)
    return Curve(
        name=run,
        rates=np.array(rates),
        steps=np.array(steps, dtype=np.int64),
        losses=np.array([losses[step] for step in steps]),
        **{field: values[run, field][0] if (run, field) in values else None for field in FIELDS},
        domain_share=1 - arm.replay / 100,
        start_loss=losses[0],
        kind=config.schedule.kind,
    )


def base_config(study: Path) -> dict[str, Any]:
    """The pretraining."""
    config = common(study, "base", {"general": {"paths": [str(study / "data/general")]}}, BASE_STEPS, 1234)
    config["model"] = {"hf": str(study / "base-config"), "weights": "random"}
    config["schedule"] = {
        "kind": "wsd",
        "peak_lr": BASE_PEAK,
        "final_lr": 0.1 * BASE_PEAK,
        "warmup": f"{BASE_STEPS // 35} steps",
        "decay": f"{BASE_DECAY} steps",
    }
    config["checkpoint"] = {"save_interval": f"{BASE_DECAY} steps", "keep_every": f"{BASE_DECAY} steps"}
    return config


def run_config(study: Path, bases: Path, arm: Arm, seed: int) -> dict[str, Any]:
    """One continuation of a folder of bases."""
    sources = {
        "domain": {"paths": [str(study / "data/domain")]},
        "general": {"paths": [str(study / "data/general")], "role": "replay"},
    }
    config = common(study, run_name(arm, seed), sources, arm.steps, 100 + seed)
    config["model"] = {"hf": str(bases / arm.base)}
    config["data"]["replay_ratio"] = arm.replay / 100
    config["schedule"] = schedule(arm)
    return config


def common(study: Path, name: str, sources: dict[str, Any], steps: int, seed: int) -> dict[str, Any]:
    """What all runs share: three sets at every mark, and more text of the two that are weighed at both ends."""
    ends = {"eval_interval": {"start": True, "end": True}}
    sets = {
        "general": {"role": "general", "tokens": "24K"},
        "domain": {"role": "domain", "tokens": "24K"},
        "other": {"role": "general", "tokens": "24K"},
        "general-more": {"role": "general", "tokens": "64K"} | ends,
        "domain-more": {"role": "domain", "tokens": "64K"} | ends,
    }
    for set_name, settings in sets.items():
        settings["paths"] = [str(study / f"data/{set_name.removesuffix('-more')}.validation")]
    return run_sections(study, name, sources, steps, seed) | {
        "validation": {"sets": sets, "eval_interval": {"every": f"{max(1, steps // 40)} steps"}},
    }


if __name__ == "__main__":
    main()
