#!/usr/bin/env python3
"""Megatron-LM's pretrain_gpt.py with our blend: the same flags, and the data of RUN.yaml.

    BLEND=RUN.yaml torchrun --nproc-per-node 8 pretrain_blend.py ...the flags of pretrain_gpt.py...

Run it in a checkout of Megatron-LM, from its root, with megatron_cpt installed. `--data-path` is not read (give
`--mock-data` where the version insists on one); `--seq-length` and `--global-batch-size` must be those of RUN.yaml.
"""

import os

from gpt_builders import gpt_builder
from megatron.core.enums import ModelType
from megatron.training import pretrain
from model_provider import model_provider
from pretrain_gpt import forward_step

from megatron_cpt.train.megatron_lm import datasets_provider

if __name__ == "__main__":
    pretrain(
        datasets_provider(os.environ["BLEND"]),
        lambda *words, **named: model_provider(gpt_builder, *words, **named),
        ModelType.encoder_or_decoder,
        forward_step,
    )
