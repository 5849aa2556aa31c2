"""Processes of this machine for a command: the one launcher of train, evaluate and score."""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from megatron_cpt.config.errors import Fault


def add_ranks(parser: argparse.ArgumentParser) -> None:
    """--nproc, --tensor and --pipeline: how many processes there are, and how they share the model."""
    parser.add_argument("--nproc", type=int, default=1, metavar="N", help="processes on this machine (default 1)")
    parser.add_argument("--tensor", type=int, default=1, metavar="N", help="tensor-parallel size (default 1)")
    parser.add_argument("--pipeline", type=int, default=1, metavar="N", help="pipeline stages (default 1)")


def rank_faults(args: argparse.Namespace) -> list[Fault]:
    """What is wrong with --tensor and --pipeline for so many processes."""
    ranks = int(os.environ.get("WORLD_SIZE", args.nproc))
    if args.tensor * args.pipeline and ranks % (args.tensor * args.pipeline) == 0:
        return []
    rule = f"cannot be shared by {ranks} ranks: their product must divide the number of ranks."
    return [Fault(f"--tensor {args.tensor} --pipeline {args.pipeline}", rule, "Give other sizes, or --nproc.")]


def in_ranks(command: str, words: Sequence[str], processes: int, environment: Mapping[str, str] = os.environ) -> int:
    """Runs a command of this program again as every rank, with the words that it was given. Returns the exit code."""
    program = [*launcher(processes, "megatron_cpt.commands.dispatch"), command, *words]
    return subprocess.call(program, env=launch_environment(environment, processes))


def is_rank() -> bool:
    """Whether torchrun, or a launcher like it, started this process."""
    return "WORLD_SIZE" in os.environ


def launch_environment(environment: Mapping[str, str], processes: int) -> dict[str, str]:
    """An environment with an even share of the cores for each process, where nothing else is set.

    Ranks make a store of their own at each start. In that of torchrun's agent, which they share otherwise, the
    addresses of ranks that are gone stay, and no restart (--max-restarts) gets past them.
    """
    share = max(1, len(os.sched_getaffinity(0)) // processes)
    return {"OMP_NUM_THREADS": str(share), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} | dict(environment)


def launcher(processes: int, module: str, max_restarts: int = 0) -> list[str]:
    """The command that runs a module on some processes of this machine."""
    if processes == 1:
        return [sys.executable, "-m", module]
    # Without `--` torchrun takes the module's --nproc for its own.
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"),
        *(f"--max-restarts={max_restarts}", "-m", "--", module),
    ]
