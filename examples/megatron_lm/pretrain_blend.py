#!/usr/bin/env python3
"""Megatron-LM's pretrain_gpt.py with our blend: the same flags, and the data of RUN.yaml.

    BLEND=RUN.yaml torchrun --nproc-per-node 8 pretrain_blend.py ...the flags of pretrain_gpt.py...

Run it in a checkout of Megatron-LM, from its root, with megatron_cpt installed. `--data-path` is not read (give
`--mock-data` where the version insists on one); `--seq-length` and `--global-batch-size` must be those of RUN.yaml.
The script runs as it is, but for the datasets that it hands to `pretrain`, whose other arguments change from version to
version.
"""

import inspect
import os
import runpy
import sys
from typing import Any

# The package comes before any module of Megatron-Core: it brings the CPU platform.
# isort: off
from megatron_cpt.train.megatron_lm import datasets_provider
import megatron.training
# isort: on

STOCK_PRETRAIN = megatron.training.pretrain


def pretrain(*words: Any, **named: Any) -> Any:
    """Megatron-LM's own, with the datasets of $BLEND in place of those of the script."""
    asked = inspect.signature(STOCK_PRETRAIN).bind(*words, **named)
    asked.arguments["train_valid_test_dataset_provider"] = datasets_provider(os.environ["BLEND"])
    return STOCK_PRETRAIN(*asked.args, **asked.kwargs)


if __name__ == "__main__":
    megatron.training.pretrain = pretrain
    sys.path.insert(0, os.getcwd())
    runpy.run_path("pretrain_gpt.py", run_name="__main__")
