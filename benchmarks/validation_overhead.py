"""What it costs to watch the stability gap closely: 64 evaluations in the first 1,000 steps.

A small Llama is trained on the CPU by the training program itself; two validation sets of one global
batch each are evaluated before the first update and at 63 log-spaced steps, without thinning. `ratio` is
the evaluations' share of the time of all updates and evaluations (start-up and checkpoint apart). About
a third of an update is its forward pass, so 128 of them in 1,000 updates are 4.1 % before any overhead.
"""

import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import tokenizers
import yaml
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from megatron_cpt.gap.curves import loss_curves
from megatron_cpt.gap.figures import gap_figures
from megatron_cpt.preparation.job import PrepareSettings
from megatron_cpt.preparation.prepare import prepare
from megatron_cpt.runs.records import read_records

STEPS, EVALUATIONS = 1000, 64
SEQUENCE_LENGTH, GLOBAL_BATCH, MICRO_BATCH = 128, 8, 8
VOCABULARY = 512
SHAPE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 128,
    "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
    "max_position_embeddings": SEQUENCE_LENGTH, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": True, "torch_dtype": "float32", "bos_token_id": None, "eos_token_id": 0,
}  # fmt: skip


def main() -> None:
    """Prepares, trains, prints a table and the result."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder)
        records = train(folder)
    evaluations = [record for record in records if record["kind"] == "validation"]
    updates = [record for record in records if record["kind"] == "train"]
    assert len(updates) == STEPS and len(evaluations) == 2 * EVALUATIONS, "the run is not the one to be measured"
    evaluating, updating = (sum(record["seconds"] for record in kind) for kind in (evaluations, updates))
    errors = {curve.name: gap_figures(curve).final_standard_error for curve in loss_curves(records)}
    details: dict[str, Any] = {
        "steps": STEPS,
        "evaluations": EVALUATIONS,
        "sets": 2,
        "tokens_per_set": GLOBAL_BATCH * SEQUENCE_LENGTH,
        "evaluation_seconds": round(evaluating, 3),
        "update_seconds": round(updating, 3),
        "median_evaluation_seconds_per_set": float(np.median([record["seconds"] for record in evaluations])),
        "median_update_seconds": float(np.median([record["seconds"] for record in updates])),
        "paired_standard_error_nats": errors,
        "machine": f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
        f"{threads()} threads, load {os.getloadavg()[0]:.1f}",
    }
    for key, value in details.items():
        print(f"{key:<36} {value}")
    ratio = evaluating / (evaluating + updating)
    print(f"{'evaluations, share of the time':<36} {ratio:.2%}")
    baseline = "time of all updates and evaluations of the same run"
    print(
        json.dumps({"benchmark": "validation_overhead", "ratio": ratio, "baseline": baseline, "details": details}),
        flush=True,
    )


def make_inputs(folder: Path) -> None:
    """A tokenizer and a model description, two corpora of two kinds of words, and the config of the run."""
    draw = random.Random(0)
    kinds = {name: [word(draw) for _ in range(150)] for name in ("general", "domain")}
    texts = {
        name: [" ".join(draw.choices(words, k=draw.randint(50, 150))) for _ in range(1500)]
        for name, words in kinds.items()
    }
    write_base(folder / "base", [text for lines in texts.values() for text in lines])
    for name, lines in texts.items():
        corpus = folder / f"{name}.jsonl"
        corpus.write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in lines))
        prepare([str(corpus)], folder / "base", folder / name, PrepareSettings(holdout=0.05))
    (folder / "run.yaml").write_text(yaml.safe_dump(run_config(folder)))


def word(draw: random.Random) -> str:
    """A made-up word of two to four syllables."""
    return "".join(draw.choice("bdfgklmnprstvz") + draw.choice("aeiou") for _ in range(draw.randint(2, 4)))


def write_base(folder: Path, texts: list[str]) -> None:
    """A Hugging Face folder without weights."""
    folder.mkdir()
    backend = tokenizers.Tokenizer(BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    (folder / "config.json").write_text(json.dumps(SHAPE))


def run_config(folder: Path) -> dict[str, Any]:
    """The run: random weights, a blend of both corpora, 64 marks."""
    return {
        "run": {"folder": str(folder / "run"), "seed": 1},
        "model": {"hf": str(folder / "base"), "weights": "random"},
        "data": {
            "sequence_length": SEQUENCE_LENGTH,
            "sources": {
                "domain": {"paths": [str(folder / "domain")]},
                "general": {"paths": [str(folder / "general")], "role": "replay"},
            },
        },
        "training": {
            "tokens": f"{STEPS} steps",
            "global_batch_size": GLOBAL_BATCH,
            "micro_batch_size": MICRO_BATCH,
            "precision": "fp32",
        },
        "schedule": {"peak_lr": 1e-3, "warmup": "20 steps"},
        "validation": {
            "sets": {
                name: {
                    "paths": [str(folder / f"{name}.validation")],
                    "role": role,
                    "tokens": GLOBAL_BATCH * SEQUENCE_LENGTH,
                }
                for name, role in (("general", "general"), ("domain", "domain"))
            },
            "eval_interval": {"start": True, "end": False, "at": [f"{step} steps" for step in marks()]},
        },
    }


def marks() -> list[int]:
    """63 different steps up to 1,000, as evenly spread on a log axis as whole steps can be."""
    points = EVALUATIONS - 1
    while len(steps := np.unique(np.geomspace(1, STEPS, points).round().astype(int))) < EVALUATIONS - 1:
        points += 1
    return steps.tolist()


def train(folder: Path) -> list[dict[str, Any]]:
    """Runs the training program on all cores and returns its records."""
    environment = os.environ | {"OMP_NUM_THREADS": threads()}
    command = [sys.executable, "-m", "megatron_cpt.train", str(folder / "run.yaml")]
    subprocess.run(command, env=environment, stdout=sys.stderr, check=True)
    return read_records(folder / "run" / "records.jsonl")


def threads() -> str:
    """Threads of the training program: those that the environment sets, else one a core."""
    return os.environ.get("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))


if __name__ == "__main__":
    main()
