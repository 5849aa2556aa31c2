"""`megatron-cpt sweep ARMS.yaml`: configurations and one resumable script for overrides times seeds."""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

from megatron_cpt.commands.parsers import command_parser
from megatron_cpt.config.schedule import phase_steps
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.config.units import counted
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


def sweep_text(sweep: Sweep, configs: Mapping[Path, RunConfig]) -> str:
    """What was written, what of it is left out, and how it is run."""
    script = sweep.folder / SCRIPT
    return "\n".join(
        [
            f"{counted(len(configs), 'run')}: {counted(len(sweep.arms), 'arm')}, {counted(len(sweep.seeds), 'seed')}; "
            f"configurations in {next(iter(configs)).parent}",
            *(f"note: {note}" for note in dict.fromkeys(_unreached_phases(configs))),
            f"bash {script}      # here, one after another; called again it goes on",
            f"sbatch {script}    # one task a run",
        ]
    )


def _unreached_phases(configs: Mapping[Path, RunConfig]) -> Iterator[str]:
    """Phases that begin after the end of a run, so that it has none of their blend."""
    for config in configs.values():
        for number, (phase, first) in enumerate(zip(config.data.phases, phase_steps(config), strict=True)):
            if first is not None and first >= config.total_steps:
                length = f"runs of {config.total_steps:,} steps"
                yield f"data.phases.{number}, {phase.beginning}, is not reached by {length}."
