"""A configuration of DeepSpeed is matched with the Trainer's arguments, and its schedule is the run's."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.load import config_from_dict
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.config.units import Duration
from megatron_cpt.planning.import_config import import_config
from megatron_cpt.planning.outcomes import Imported, ImportOptions
from megatron_cpt.planning.run_file import run_text
from tests.planning.small_run import write_model

TRAINER = {
    "model_name_or_path": "base",
    "train_file": "medicine.jsonl",
    "block_size": 64,
    "bf16": True,
    "learning_rate": 1e-4,
    "weight_decay": 0.1,
    "max_steps": 100,
    "warmup_steps": 30,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
}
AUTO = {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto", "warmup_type": "linear"}
ADAMW: dict[str, Any] = {
    "type": "AdamW",
    "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "base")
    return tmp_path


def imported(deepspeed: Any, *changes: str) -> tuple[RunConfig, dict[str, tuple[str, str]]]:
    """The run of the Trainer with a configuration of DeepSpeed, and what became of each key."""
    Path("configs").mkdir(exist_ok=True)
    path = Path("configs/trainer.json")
    path.write_text(json.dumps({**TRAINER, "deepspeed": deepspeed}))
    found: Imported
    _, found, _ = import_config(path, changes, ImportOptions(ranks=2))
    config = config_from_dict(yaml.safe_load(run_text(["head"], found.entries)))
    return config, {one.text.split(": ")[0]: (one.result, one.words) for one in found.outcomes}


@pytest.mark.parametrize(
    ("kind", "params", "expected"),
    [
        ("WarmupLR", AUTO, ("constant", 0.0, 0.0)),
        ("WarmupLR", AUTO | {"warmup_min_lr": 1e-6}, ("constant", 0.0, 1e-6)),
        ("WarmupDecayLR", AUTO | {"total_num_steps": "auto"}, ("linear", 0.0, 0.0)),
        ("WarmupDecayLR", AUTO | {"total_num_steps": 100, "warmup_min_lr": 1e-6}, ("linear", 1e-6, 1e-6)),
        (
            "WarmupCosineLR",
            {"total_num_steps": "auto", "warmup_num_steps": 30, "warmup_type": "linear"},
            ("cosine", 1e-8, 0.0),
        ),
        (
            "WarmupCosineLR",
            {"total_num_steps": 100, "warmup_num_steps": 30, "cos_min_ratio": 0.1, "warmup_type": "linear"},
            ("cosine", 1e-5, 0.0),
        ),
    ],
)
def test_its_scheduler_takes_the_place_of_the_trainers(
    kind: str, params: dict[str, Any], expected: tuple[str, float, float]
) -> None:
    config, told = imported({"zero_optimization": {"stage": 2}, "scheduler": {"type": kind, "params": params}})
    schedule = config.schedule
    assert (schedule.kind, schedule.final_lr, schedule.initial_lr) == expected
    assert (schedule.peak_lr, schedule.warmup) == (1e-4, Duration(30, "steps"))
    assert not {key for key, (result, _) in told.items() if result in ("refused", "unknown")}
    assert told["deepspeed.scheduler.type"] == ("taken", f"schedule.kind: {expected[0]}")
    assert config.parallel.distributed_optimizer


def test_what_has_no_counterpart_is_refused() -> None:
    logarithmic = {key: value for key, value in AUTO.items() if key != "warmup_type"}
    _, told = imported({"scheduler": {"type": "WarmupLR", "params": logarithmic}})
    assert told["deepspeed.scheduler.params.warmup_type"][0] == "refused"
    cycle = {"type": "OneCycle", "params": {"cycle_max_lr": 1e-3}}
    config, told = imported({"scheduler": cycle, "curriculum_learning": {"enabled": True}})
    assert config.schedule.kind == "constant"
    for key in ("scheduler.type", "scheduler.params.cycle_max_lr", "curriculum_learning.enabled"):
        assert told[f"deepspeed.{key}"][0] == "refused"
    one_bit = {"type": "OneBitAdam", "params": ADAMW["params"] | {"freeze_step": 400}}
    _, told = imported({"optimizer": one_bit})
    assert told["deepspeed.optimizer.type"][0] == told["deepspeed.optimizer.params.freeze_step"][0] == "refused"


@pytest.mark.parametrize(
    ("deepspeed", "said"),
    [
        ({"gradient_clipping": 0.3}, "deepspeed.gradient_clipping: 0.3: is another value"),
        (
            {"train_batch_size": 64},
            "deepspeed.train_batch_size: 64: is another value than the Trainer's (batches of all",
        ),
        ({"train_micro_batch_size_per_gpu": 1}, "deepspeed.train_micro_batch_size_per_gpu"),
        ({"gradient_accumulation_steps": 8}, "deepspeed.gradient_accumulation_steps"),
        ({"fp16": {"enabled": True}}, "deepspeed.fp16.enabled"),
        ({"bf16": {"enabled": False}}, "deepspeed.bf16.enabled"),
        (
            {"optimizer": {"type": "AdamW", "params": {"lr": 3e-6}}},
            "deepspeed.optimizer.params.lr: 3.0e-06: is another",
        ),
        ({"optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}, "weight_decay: 0.0 (default): holds in DeepSpeed"),
        (
            {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 30}}},
            "deepspeed.scheduler.params.warmup_max_lr: 0.001 (default): holds in DeepSpeed",
        ),
        ({"scheduler": {"type": "WarmupLR", "params": AUTO | {"warmup_num_steps": 33}}}, "warmup_num_steps: 33"),
        ({"scheduler": {"type": "WarmupDecayLR", "params": AUTO}}, "total_num_steps"),
    ],
)
def test_numbers_that_are_not_the_trainers_make_no_run(deepspeed: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=re.escape(said)):
        imported(deepspeed)


def test_auto_and_equal_numbers_are_the_trainers() -> None:
    same = {"train_batch_size": 16, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": "auto"}
    others = {"gradient_clipping": 1, "bf16": {"enabled": "auto"}, "fp16": {"enabled": False}, "optimizer": ADAMW}
    config, told = imported({**same, **others})
    assert (config.training.global_batch_size, config.optimizer.weight_decay) == (16, 0.1)
    assert config.optimizer.clip_grad == 1
    assert told["deepspeed.gradient_clipping"] == ("equal", "the Trainer's: max_grad_norm")
    assert not {key for key, (result, _) in told.items() if result in ("refused", "unknown")}


def test_gradients_are_not_clipped_where_deepspeed_is_not_told_to() -> None:
    for deepspeed in ({"zero_optimization": {"stage": 2}}, {"gradient_clipping": None}):
        config, told = imported(deepspeed)
        assert config.optimizer.clip_grad == 0
        assert "deepspeed.gradient_clipping is not there" in told["max_grad_norm"][1]
    assert imported(None)[0].optimizer.clip_grad == 1


def test_a_file_is_read_beside_the_configuration_and_changes_hold_over_it() -> None:
    Path("configs").mkdir()
    Path("configs/ds.json").write_text(json.dumps({"gradient_clipping": 0.25, "zero_optimization": {"stage": 0}}))
    with pytest.raises(BadInput, match=r"deepspeed\.gradient_clipping: 0\.25: is another value"):
        imported("ds.json")
    config, told = imported("ds.json", "deepspeed.gradient_clipping=auto")
    assert not config.parallel.distributed_optimizer
    assert told["deepspeed.gradient_clipping"][0] == "equal"


def test_a_file_that_cannot_be_read_is_told() -> None:
    Path("broken.json").write_text("{")
    for name in ("nowhere.json", "broken.json"):
        config, told = imported(name)
        assert told["deepspeed"][0] == "refused" and "Bring it beside" in told["deepspeed"][1]
        assert config.parallel.distributed_optimizer
