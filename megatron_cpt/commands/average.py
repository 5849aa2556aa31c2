"""`megatron-cpt average`: weighted mean of models: of several checkpoints, or of a run and its base."""

import argparse
from pathlib import Path

from megatron_cpt.checkpoint.convert import average, newest_of_run
from megatron_cpt.commands.parsers import command_parser
from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.parallel import groups


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = command_parser(
        "average",
        __doc__,
        "megatron-cpt average runs/medicine Llama-3-8B --weights 0.7 0.3 --output averaged",
    )
    top.add_argument("sources", type=Path, nargs="+", metavar="CHECKPOINT_OR_HF", help="models of one shape")
    top.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="the checkpoint to write")
    top.add_argument(
        "--weights",
        type=float,
        action="extend",
        nargs="+",
        metavar="SHARE",
        help="of each source; scaled to 1 (default: all alike)",
    )
    return top


def main(arguments: list[str]) -> int:
    """Averages in this process."""
    args = parser().parse_args(arguments)
    args.sources = [newest_of_run(source) for source in args.sources]
    groups.init_process_group()
    groups.init_model_parallel(ParallelSettings())
    try:
        dtype = average(args.sources, args.weights or [1.0] * len(args.sources), args.output)
        rounded = f": rounded to it from sums in float32, as {args.sources[0]} has it" if dtype != "float32" else ""
        print(f"wrote {args.output} in {dtype}{rounded}")
    finally:
        groups.destroy()
    return 0
