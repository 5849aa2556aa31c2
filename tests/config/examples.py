"""A small configuration that is right, for tests to change."""

import copy
from typing import Any

from megatron_cpt.config.load import config_from_dict
from megatron_cpt.config.schema import RunConfig

# 16 sequences of 256 tokens a step; 1,024,000 tokens are 250 steps.
SETTINGS: dict[str, Any] = {
    "run": {"folder": "runs/example"},
    "model": {"hf": "models/base"},
    "data": {
        "sequence_length": 256,
        "sources": {
            "code": {"paths": ["data/code"]},
            "general": {"paths": ["data/general"], "role": "replay"},
        },
        "replay_ratio": 0.3,
    },
    "training": {"tokens": "1024K", "global_batch_size": 16, "micro_batch_size": 4},
    "schedule": {"peak_lr": 1e-3, "warmup": "10 steps"},
    "validation": {"sets": {"general": {"paths": ["data/general.validation"]}}},
    "checkpoint": {"save_interval": "50 steps"},
}


def settings_with(**changes: Any) -> dict[str, Any]:
    """SETTINGS with changes by dotted name, written `section__key=value`."""
    settings = copy.deepcopy(SETTINGS)
    for name, value in changes.items():
        *path, key = name.split("__")
        section = settings
        for part in path:
            section = section.setdefault(part, {})
        section[key] = value
    return settings


def config_with(**changes: Any) -> RunConfig:
    """The configuration of `settings_with`."""
    return config_from_dict(settings_with(**changes))
