"""The study of the law of continual pretraining: a base on general text, continued on a domain in 54 runs.

    python -m examples.studies.laws.study GENERAL.jsonl DOMAIN.jsonl OTHER.jsonl [--output STUDY] [--jobs 2]

Each file holds one JSON object with a `text` a line and may be compressed (.zst). OTHER is text of a third kind that
no run is trained on. A Llama of 4 layers of 64 (0.18M parameters without embeddings) is pretrained on GENERAL for
3,500 steps of 4,096 tokens and continued on DOMAIN for 800. Runs of one replay ratio and seed read the same text in the
same order and are equal until their learning rates part. Called again, the study goes on with what is not done.
evaluate.py reads what it leaves.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.studies.runs import call, prepare, run_sections, train, train_all
from megatron_cpt.quickstart.base_folder import SMALL_LLAMA

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
ARMS = [*FITTED, *(arm for arms in UNSEEN.values() for arm in arms)]


def main() -> None:
    """Text, the base, then every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("general", "domain", "other"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--output", type=Path, default=Path("study"), metavar="STUDY")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each (default: 2)")
    args = parser.parse_args()
    study = args.output
    (study / "configs").mkdir(parents=True, exist_ok=True)
    corpora = {"general": args.general, "domain": args.domain, "other": args.other}
    prepare(study, corpora, ("general", "domain"), MODEL)
    train(study, "base", base_config(study))
    for name, step in BASES.items():
        export_base(study, name, step)
    configs = {f"{arm.name}-seed-{seed}": run_config(study, arm, seed) for seed in SEEDS for arm in ARMS}
    train_all(study, configs, args.jobs)


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


def export_base(study: Path, name: str, step: int) -> None:
    """The Hugging Face folder of a step of the base."""
    folder = study / "bases" / name
    if not folder.exists():
        call("convert", "to-hf", str(study / f"runs/base/checkpoints/step-{step:08}"), str(folder))


def run_config(study: Path, arm: Arm, seed: int) -> dict[str, Any]:
    """One continuation."""
    sources = {
        "domain": {"paths": [str(study / "data/domain")]},
        "general": {"paths": [str(study / "data/general")], "role": "replay"},
    }
    config = common(study, f"{arm.name}-seed-{seed}", sources, arm.steps, 100 + seed)
    config["model"] = {"hf": str(study / "bases" / arm.base)}
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
