"""`megatron-cpt doctor`: what this machine has, which kernels will be used, what is missing."""

import argparse
import os
import shutil
import sys
from pathlib import Path

import torch

from megatron_cpt.model.specs import choose_kernels, transformer_engine_usable
from megatron_cpt.parallel import cpu
from megatron_cpt.train.provenance import installed_version

NEEDED = ("torch", "megatron-core", "numpy", "psutil", "pydantic", "tokenizers", "safetensors", "transformers")


def main(arguments: list[str]) -> int:
    """Prints a table and what follows from it."""
    argparse.ArgumentParser(prog="megatron-cpt doctor", description=__doc__).parse_args(arguments)
    rows = machine() + packages() + kernels()
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    for line in advice():
        print(f"\n{line}")
    return 0


def machine() -> list[tuple[str, str]]:
    """Rows on cores, memory, disk and GPUs."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return [
        ("Python", sys.version.split()[0]),
        ("cores", f"{len(os.sched_getaffinity(0))}"),
        ("memory", f"{memory:.1f} GiB"),
        ("free disk here", f"{free:.1f} GiB"),
        ("GPUs", ", ".join(gpus) or "none"),
    ]


def packages() -> list[tuple[str, str]]:
    """Rows on installed versions."""
    return [(name, installed_version(name) or "MISSING: make install") for name in NEEDED]


def kernels() -> list[tuple[str, str]]:
    """Rows on what a run will use."""
    chosen = choose_kernels()
    return [
        ("Megatron-Core runs on", "the CPU layer (gloo)" if cpu.installed() else "CUDA (NCCL)"),
        ("layers", chosen.layers),
        ("attention", chosen.attention),
        ("norm", chosen.norm),
        ("optimizer", chosen.optimizer),
        ("sequences on several ranks", chosen.context),
        ("experts", chosen.experts),
    ]


def advice() -> list[str]:
    """What to change, if anything."""
    lines = []
    if torch.version.cuda and not torch.cuda.is_available():
        lines.append(f"torch is a CUDA build ({torch.version.cuda}), and no GPU is visible: check the driver.")
    if torch.cuda.is_available() and not transformer_engine_usable():
        lines.append("Transformer Engine is not installed: runs use Megatron-Core's local layers, which are slower.")
    if not torch.cuda.is_available():
        lines.append("No GPU: set training.precision=fp32, and one thread a process (OMP_NUM_THREADS=1) with --nproc.")
    return lines
