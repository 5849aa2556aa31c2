"""`megatron-cpt doctor`: what this machine has, which kernels will be used, what is missing."""

import argparse
import os
import shutil
import socket
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from megatron_cpt.commands.parsers import command_parser
from megatron_cpt.config.schema import OptimizerSettings, ParallelSettings, Precision
from megatron_cpt.families.shape import read_shape
from megatron_cpt.model.build import ModelOptions, build_model, wrap_for_training
from megatron_cpt.model.layers import transformer_engine_usable
from megatron_cpt.parallel import cpu_platform, groups
from megatron_cpt.parallel.device_check import device_faults, measure
from megatron_cpt.parallel.groups import seed_everything
from megatron_cpt.parallel.mcore_compat import release, untried
from megatron_cpt.runs.floors import floor_faults
from megatron_cpt.runs.folder import ExitCode, write_json
from megatron_cpt.train.optimizer import build_optimizer
from megatron_cpt.train.provenance import Kernels, installed_version, kernels_of

_NEEDED = ("torch", "megatron-core", "numpy", "psutil", "pydantic", "tokenizers", "safetensors", "transformers")
# Layers of a Llama, with experts: nothing that only some families have.
_SMALL_MODEL: dict[str, Any] = {
    "model_type": "mixtral",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_local_experts": 2,
    "max_position_embeddings": 64,
}
_TITLES = {"context": "context parallelism"}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = command_parser("doctor", __doc__, "megatron-cpt doctor", "megatron-cpt doctor --gpus 0")
    top.add_argument(
        "--gpus",
        type=_count,
        metavar="N",
        help="only check that N GPUs are there, and that each gives the same bits for the same product as fast as the "
        "others; exit code 1 if not. 0: the processor (for a batch script, on every machine, before the run)",
    )
    return top


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return number


def main(arguments: list[str]) -> int:
    """Prints a table and what follows from it."""
    args = parser().parse_args(arguments)
    if args.gpus is not None:
        return _check(args.gpus)
    rows = machine() + packages() + kernels()
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    for line in _advice():
        print(f"\n{line}")
    return 0


def _check(gpus: int) -> int:
    """Prints a line for each device, and what is wrong. Returns the exit code."""
    host = socket.gethostname()
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    results = [measure(device) for device in devices or [torch.device("cpu")]]
    for result in results:
        print(f"{host}, {result.device}: {result.name}, {result.flops / 1e12:.3g} TFLOP/s, {result.checksum[:8]}")
    faults = device_faults(results, gpus, host)
    for fault in faults:
        print(f"megatron-cpt doctor: {fault}", file=sys.stderr)
    return ExitCode.OTHER if faults else ExitCode.DONE


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
    return [(name, installed_version(name) or "MISSING: make install") for name in _NEEDED]


def kernels() -> list[tuple[str, str]]:
    """Rows on what a run will use."""
    precision: Precision = "bf16" if torch.cuda.is_available() else "fp32"
    chosen = asdict(_kernels_of_small_model(precision))
    return [
        ("Megatron-Core runs on", "the CPU platform (gloo)" if cpu_platform.installed() else "CUDA (NCCL)"),
        ("kernels of", f"a small Mixtral in {precision}; the log of a run names those of its own model"),
        *((_TITLES.get(name, name), kernel) for name, kernel in chosen.items()),
    ]


def _kernels_of_small_model(precision: Precision) -> Kernels:
    """What a model and its optimizer are made of here, when they are built as a run builds them."""
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "config.json", _SMALL_MODEL)
        shape = read_shape(folder)
    options = ModelOptions(sequence_length=64, precision=precision)
    groups.init_process_group()
    try:
        groups.init_model_parallel(ParallelSettings())
        seed_everything(0)
        model = wrap_for_training(build_model(shape, options), options)
        return kernels_of(model, build_optimizer(model, OptimizerSettings(), peak_lr=1e-5))
    finally:
        groups.destroy()


def _advice() -> list[str]:
    """What to change, if anything."""
    lines = [str(fault) for fault in floor_faults()]
    if warning := untried(release()):
        lines.append(warning[0].upper() + warning[1:] + ".")
    if torch.version.cuda and not torch.cuda.is_available():
        lines.append(f"torch is a CUDA build ({torch.version.cuda}), and no GPU is visible: check the driver.")
    if torch.cuda.is_available() and not transformer_engine_usable():
        lines.append("Transformer Engine is not installed: runs use Megatron-Core's local layers, which are slower.")
    if not torch.cuda.is_available():
        lines.append("No GPU: set training.precision=fp32, and one thread a process (OMP_NUM_THREADS=1) with --nproc.")
    return lines
