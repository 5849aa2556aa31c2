"""Run folders with planted losses, made by the writers of the real files."""

from pathlib import Path

import numpy as np

from megatron_cpt.runs.folder import Status, write_status
from megatron_cpt.runs.records import RecordWriter

STEP_TOKENS = 4096
MARKS = [0, 1, 2, 3, 5, 8, 12, 18, 27, 40, 60, 80, 100, 120, 140, 160, 180, 200, 220, 240, 256]
SEQUENCE_TOKENS = [256] * 63 + [97]
CONFIG = "run:\n  folder: runs/x\n  seed: 1234\nschedule:\n  peak_lr: 0.001  # </details><script>alert(1)</script>\n"


def write_run(folder: Path, mitigated: bool, names: tuple[str, str] = ("general", "code")) -> Path:
    """A run of 256 steps: general loss rises and stays (naive) or comes back (mitigated); code is learnt."""
    folder.mkdir(parents=True)
    general, domain = names
    noise = np.random.default_rng(5 + mitigated)
    records = []
    for step in range(MARKS[-1] + 1):
        if step:
            records.append(_train(step, mitigated, names, noise))
        if step in MARKS:
            records.append(_validation(step, general, "general", _general(step, mitigated), noise))
            records.append(_validation(step, domain, "domain", _domain(step, mitigated), noise))
            records += [_gradients(step, general), _weights(step)]
        if step % 64 == 0:
            records += [_task(step, f"{general} task", "general", 0.6 - 0.2 * (step > 0) * (not mitigated), noise)]
            records += [_task(step, f"{domain} task", "domain", 0.3 + 0.001 * step, noise), _group(step, general)]
    records.append(_at(40, "event") | {"event": "skipped_not_finite", "loss": None, "<b>reason": "<script>"})
    writer = RecordWriter(folder / "records.jsonl")
    for record in records:
        writer.append(record)
    writer.close()
    (folder / "config.yaml").write_text(CONFIG)
    write_status(folder / "status.json", Status("done", 0, None, MARKS[-1], MARKS[-1] * STEP_TOKENS))
    return folder


def _general(step: int, mitigated: bool) -> float:
    if mitigated:
        return 4.90 + 0.16 * (step / 12) * np.exp(1 - step / 12) if step else 4.90
    return 4.90 + 0.55 * (1 - np.exp(-step / 20))


def _domain(step: int, mitigated: bool) -> float:
    return 5.70 - (1.92 if mitigated else 2.02) * (1 - np.exp(-step / 60))


def _validation(step: int, name: str, role: str, loss: float, noise: np.random.Generator) -> dict:
    tokens = np.array(SEQUENCE_TOKENS)
    levels = np.random.default_rng(1).normal(0, 0.4, len(tokens)) * (tokens > 0)
    wobble = noise.normal(0, 0.02, len(tokens)) if step else np.zeros(len(tokens))
    nats = (loss + levels - (levels * tokens).sum() / tokens.sum() + wobble) * tokens
    return {
        "kind": "validation", "step": step, "tokens": step * STEP_TOKENS, "set": name, "role": role,
        "loss": nats.sum() / tokens.sum(), "bits_per_byte": None, "scored_tokens": int(tokens.sum()),
        "scored_bytes": None, "identity": f"identity of {name}", "sequence_nats": nats.tolist(),
        "sequence_tokens": SEQUENCE_TOKENS, "seconds": 0.2,
    }  # fmt: skip


def _at(step: int, kind: str) -> dict:
    return {"kind": kind, "step": step, "tokens": step * STEP_TOKENS}


def _gradients(step: int, name: str) -> dict:
    parts = dict.fromkeys(("all", "bottom", "top"), 0.2 + step / 500)
    change = {"predicted_change": 0.01 - step / 10_000, "change": 0.012 - step / 10_000}
    return _at(step, "gradients") | {"set": name, "cosine": parts, "gradient_norm": parts, "seconds": 0.3} | change


def _weights(step: int) -> dict:
    ends = {"bottom": 0.02 * step, "top": 0.015 * step, "bottom_over_top": 4 / 3 if step else None}
    return _at(step, "weights") | {"mean_relative": ends, "norm_ratio": ends}


def _task(step: int, name: str, role: str, accuracy: float, noise: np.random.Generator) -> dict:
    wrong = (noise.random(100) > accuracy).astype(int)
    return _at(step, "task") | {
        "task": name, "role": role, "metric": "accuracy", "identity": name, "chance": 0.25, "loss": wrong.mean(),
        "score": 1 - wrong.mean(), "item_losses": wrong.tolist(), "item_weights": [1] * 100, "seconds": 0.5,
    }  # fmt: skip


def _group(step: int, general: str) -> dict:
    return _at(step, "task_group") | {"group": f"{general} mean", "score": 0.5, "standard_error": 0.05}


def _train(step: int, mitigated: bool, names: tuple[str, str], noise: np.random.Generator) -> dict:
    general, domain = names
    loss = _domain(step, mitigated) + noise.normal(0, 0.05)
    replayed = int(step * 0.3) * STEP_TOKENS if mitigated else 0
    sources = {f"{domain} corpus": step * STEP_TOKENS - replayed}
    losses = {f"{domain} corpus": loss}
    if mitigated:
        sources[f"{general} replay"] = replayed
        losses[f"{general} replay"] = 4.9 + noise.normal(0, 0.1) if step % 3 else None
    return {
        "kind": "train", "step": step, "tokens": step * STEP_TOKENS, "sequences": step * 16,
        "learning_rate": 1e-3 * min(step / 12, 0.5 + 0.5 * np.cos(np.pi * step / 257)), "loss": loss,
        "grad_norm": 0.6 + noise.random(), "source_losses": losses, "source_tokens": sources,
        "source_epochs": {name: count / 300_000 for name, count in sources.items()},
        "seconds": 0.4, "tokens_per_second": 9000.0, "mfu": None, "memory_bytes": None,
    }  # fmt: skip
