"""The kernels that a run names are those of its own model and optimizer."""

from pathlib import Path

import orjson
import pytest
import torch

from megatron_cpt.config.load import config_from_dict
from megatron_cpt.families.shape import read_shape
from megatron_cpt.model.build import ModelOptions, build_model, wrap_for_training
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.groups import seed_everything
from megatron_cpt.train.optimizer import build_optimizer
from megatron_cpt.train.provenance import kernels_of
from tests.families.folders import MODELS, write_fields
from tests.ranks import Ranks
from tests.train.runs import train
from tests.workshop import Workshop

SDPA = "torch scaled_dot_product_attention"
WINDOWED = "torch scaled_dot_product_attention in blocks (sliding window)"
IN_MEMORY = "full score matrix (soft cap)"
SEQUENTIAL = "Megatron-Core, sequential"
ONE_PASS = "megatron-cpt (CPU kernel)"
KINDS: dict[str, dict[str, str]] = {
    "llama": {"attention": SDPA, "norm": "megatron-cpt RMSNorm", "rope": ONE_PASS, "experts": "none"},
    "gpt_neox": {"attention": SDPA, "norm": "torch LayerNorm", "rope": "Megatron-Core", "experts": "none"},
    "mistral": {"attention": WINDOWED, "norm": "megatron-cpt RMSNorm", "rope": ONE_PASS},
    "qwen3_window": {"attention": f"{SDPA}, {WINDOWED}", "norm": "megatron-cpt RMSNorm", "rope": ONE_PASS},
    "llama4_text": {"attention": f"{SDPA}, {SDPA} in chunks", "rope": "Megatron-Core", "experts": SEQUENTIAL},
    "gemma2": {"attention": IN_MEMORY, "norm": "megatron-cpt ZeroCenteredRMSNorm", "rope": ONE_PASS},
    "olmo2": {
        "attention": SDPA,
        "norm": "megatron-cpt AllKeysRMSNorm, megatron-cpt AllQueriesRMSNorm, megatron-cpt RMSNorm",
    },
    "mixtral": {"attention": SDPA, "experts": SEQUENTIAL},
}


def kernels_of_kinds(folder: Path) -> dict[str, dict[str, str]]:
    """A job: the kernels of models of each kind, as a run would build them."""
    found = {}
    for kind in KINDS:
        shape = read_shape(write_fields(folder / kind, MODELS[kind]))
        config = config_from_dict(
            {
                "run": {"folder": "run"},
                "model": {"hf": str(folder / kind)},
                "data": {"sequence_length": 64, "sources": {"text": {"paths": ["text"]}}},
                "training": {"tokens": "1 steps", "global_batch_size": 1, "precision": "fp32"},
                "schedule": {"peak_lr": 1e-5},
                "parallel": {"distributed_optimizer": kind == "llama"},
            }
        )
        groups.init_model_parallel(config.parallel)
        seed_everything(0)
        options = ModelOptions.of_run(config)
        model = wrap_for_training(build_model(shape, options), options)
        found[kind] = vars(kernels_of(model, build_optimizer(model, config.optimizer, config.schedule.peak_lr)))
    return found


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU they depend on what else is installed")
def test_kernels_are_those_of_the_model(one_rank: Ranks, tmp_path: Path) -> None:
    (found,) = one_rank.call(kernels_of_kinds, folder=tmp_path)
    for kind, expected in KINDS.items():
        assert found[kind].items() >= expected.items(), kind
        assert found[kind]["layers"] == "Megatron-Core (oneDNN)"
        assert found[kind]["optimizer"] == "torch AdamW (fused)"
        assert found[kind]["loss"] == "megatron-cpt (CPU kernel)"


def test_the_log_and_the_versions_of_a_run_name_them(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    run = tmp_path / "run"
    one_rank.call(
        train, path=workshop.write_config(run), overrides=("training.tokens=5 steps", "checkpoint.save_interval=null")
    )
    named = orjson.loads((run / "versions.json").read_bytes())["kernels"]
    assert named["optimizer"] and named["attention"]
    line = "; ".join(f"{name}: {kernel}" for name, kernel in named.items())
    assert f"kernels: {line}" in (run / "log.txt").read_text()
