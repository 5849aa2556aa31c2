"""`megatron-cpt sweep ARMS.yaml`: configurations and one resumable script for overrides times seeds."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from megatron_cpt.commands.parsers import command_parser
from megatron_cpt.runs.folder import ExitCode
from megatron_cpt.scaling_law.sweep import SCRIPT, Sweep, read_sweep, write_sweep


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = command_parser(
        "sweep",
        __doc__,
        "megatron-cpt sweep arms.yaml",
    )
    top.add_argument("arms", metavar="ARMS.yaml", help="config, folder, seeds, and arms or grid of overrides")
    return top


def main(arguments: list[str]) -> int:
    """Writes the sweep and prints how to run it. Raises BadInput with every fault of the file and of every arm."""
    args = parser().parse_args(arguments)
    sweep = read_sweep(Path(args.arms))
    print(sweep_text(sweep, write_sweep(sweep)))
    return ExitCode.DONE


def sweep_text(sweep: Sweep, configs: Sequence[Path]) -> str:
    """What was written, and how it is run."""
    script = sweep.folder / SCRIPT
    return (
        f"{len(configs)} runs: {len(sweep.arms)} arms, {len(sweep.seeds)} seeds; "
        f"configurations in {configs[0].parent}\n"
        f"bash {script}      # here, one after another; called again it goes on\n"
        f"sbatch {script}    # one task a run"
    )
