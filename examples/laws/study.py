"""A small study of the continual law: a base on general text, continued on a domain, on one core of a CPU.

    python examples/laws/study.py GENERAL.jsonl DOMAIN.jsonl [STUDY]

Both files hold one JSON object with a `text` a line. A Llama of 4 layers of 64 (0.18M parameters without embeddings) is
pretrained for 3,000 steps of 2,048 tokens, then continued for 600 steps of 1,024: three schedules at three replay
ratios, and a sweep of six ratios over two seeds. 18 runs of 1 to 2 minutes on a core that is free. Called again it
goes on with what is not done. evaluate.py reads what it leaves.
"""

import os
import random
import subprocess
import sys
from pathlib import Path

import yaml

from megatron_cpt.quickstart import base_folder

COMMAND = str(Path(sys.executable).with_name("megatron-cpt"))
DOCUMENTS = 150
"""Of each corpus that the tokenizer is trained on."""
VOCABULARY = 2048
TINY_LLAMA = {"hidden_size": 64, "intermediate_size": 176, "head_dim": 16, "vocab_size": VOCABULARY}
STEPS = 600
WARMUP = "24 steps"
PEAK = 2e-3
SCHEDULES = {
    "cosine": {"kind": "cosine", "peak_lr": PEAK, "final_lr": 2e-4, "warmup": WARMUP},
    "constant": {"kind": "constant", "peak_lr": PEAK, "warmup": WARMUP},
    "wsd": {"kind": "wsd", "peak_lr": PEAK, "final_lr": 0.0, "warmup": WARMUP, "decay": "150 steps"},
}
GRID = [(kind, ratio, 1) for ratio in (0, 0.05, 0.25) for kind in SCHEDULES]
SWEEP = [("cosine", ratio, seed) for ratio in (0, 0.01, 0.05, 0.1, 0.25, 0.5) for seed in (1, 2)]


def main() -> None:
    """Text, base, then every run."""
    general, domain, *rest = sys.argv[1:]
    study = Path(rest[0] if rest else "study")
    (study / "configs").mkdir(parents=True, exist_ok=True)
    prepare(study, {"general": Path(general), "domain": Path(domain)})
    train(study, "base", base_config(study))
    for kind, ratio, seed in dict.fromkeys(GRID + SWEEP):
        train(study, f"{kind}-r{ratio:g}-s{seed}", run_config(study, kind, ratio, seed))


def prepare(study: Path, corpora: dict[str, Path]) -> None:
    """A tokenizer from a part of both corpora, and both as tokens with 1 % of the documents held out."""
    folder = study / "base-config"
    if not (folder / "config.json").is_file():
        samples = []
        for name, path in corpora.items():
            lines = path.read_bytes().splitlines(keepends=True)
            random.Random(name).shuffle(lines)
            samples.append(study / f"{name}-sample.jsonl")
            samples[-1].write_bytes(b"".join(lines[:DOCUMENTS]))
        base_folder.VOCABULARY = VOCABULARY
        base_folder.SMALL_LLAMA |= TINY_LLAMA
        base_folder.write_base_folder(samples, folder)
    for name, path in corpora.items():
        prefix = str(study / "data" / name)
        call("prepare", str(path), "--tokenizer", str(folder), "--output", prefix, "--holdout", "1%")


def base_config(study: Path) -> dict:
    """The pretraining."""
    config = common(study, "base", {"general": {"paths": [str(study / "data/general")]}}, 16)
    config["model"] = {"hf": str(study / "base-config"), "weights": "random"}
    config["training"]["tokens"] = "3000 steps"
    config["schedule"] = {"kind": "cosine", "peak_lr": 4e-3, "final_lr": 4e-4, "warmup": "100 steps"}
    config["checkpoint"] = {"save_interval": "1000 steps", "export_hf": {"end": True}}
    return config


def run_config(study: Path, kind: str, ratio: float, seed: int) -> dict:
    """One run of the study."""
    sources = {
        "domain": {"paths": [str(study / "data/domain")]},
        "general": {"paths": [str(study / "data/general")], "role": "replay"},
    }
    config = common(study, f"{kind}-r{ratio:g}-s{seed}", sources, 8)
    config["run"]["seed"] = 100 + seed
    config["model"] = {"hf": str(study / "runs/base/hf")}
    config["data"]["replay_ratio"] = ratio
    config["training"]["tokens"] = f"{STEPS} steps"
    config["schedule"] = SCHEDULES[kind]
    return config


def common(study: Path, name: str, sources: dict, batch: int) -> dict:
    """What all runs share."""
    sets = {
        name: {"paths": [str(study / f"data/{name}.validation")], "role": role, "tokens": "12K"}
        for name, role in (("general", "general"), ("domain", "domain"))
    }
    return {
        "run": {"folder": str(study / "runs" / name)},
        "data": {"sequence_length": 128, "sources": sources},
        "training": {"global_batch_size": batch, "micro_batch_size": batch, "precision": "fp32"},
        "validation": {
            "micro_batch_size": 16,
            "sets": sets,
            "eval_interval": {"log_spaced": "3 per decade to 60 steps", "every": "40 steps"},
        },
    }


def train(study: Path, name: str, config: dict) -> None:
    """One run; a finished one is passed over."""
    path = study / "configs" / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    call("train", str(path))


def call(*words: str) -> None:
    """A megatron-cpt command on one thread; its failure ends the study with its exit code."""
    code = subprocess.call([COMMAND, *words], env=os.environ | {"OMP_NUM_THREADS": "1"})
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
