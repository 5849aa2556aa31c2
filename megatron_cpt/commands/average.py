"""`megatron-cpt average`: one model of several, or of a run and its base; or the losses between the two."""

import argparse
from pathlib import Path
from typing import get_args

from megatron_cpt.checkpoint.average import TIES_DENSITY, Averaging, Method, average
from megatron_cpt.checkpoint.convert import newest_of_run
from megatron_cpt.commands.average_curve import draw_curve
from megatron_cpt.commands.parsers import command_parser
from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.parallel import groups


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = command_parser(
        "average",
        __doc__,
        "megatron-cpt average runs/medicine Llama-3-8B --weights 0.7 0.3 --output averaged",
        "megatron-cpt average runs/medicine averaged --method ties --base Llama-3-8B --output merged",
        "megatron-cpt average runs/medicine Llama-3-8B --curve run.yaml --output curve",
    )
    top.add_argument("sources", type=Path, nargs="+", metavar="CHECKPOINT_OR_HF", help="models of one shape")
    top.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="the checkpoint, or the curve's folder, to write"
    )
    top.add_argument(
        "--weights",
        type=float,
        action="extend",
        nargs="+",
        metavar="WEIGHT",
        help="of each source; scaled to 1, but for task_arithmetic (default: 1 each)",
    )
    top.add_argument(
        "--method",
        choices=get_args(Method),
        default="linear",
        help="mean of weights, or what is added to --base: a sum of differences, or TIES (default: %(default)s)",
    )
    top.add_argument("--base", type=Path, metavar="CHECKPOINT_OR_HF", help="the model that differences are from")
    top.add_argument(
        "--density",
        type=float,
        metavar="PART",
        help=f"part of each tensor's differences that ties keeps (default: {TIES_DENSITY})",
    )
    top.add_argument("--scale", type=float, metavar="FACTOR", help="of all that is added to --base (default: 1)")
    top.add_argument(
        "--curve",
        action="extend",
        nargs="+",
        metavar=("RUN.yaml", "section.key=value"),
        help="no model, but the losses of RUN's validation sets at shares 0, 0.1 to 1 of the first source in its mean "
        "with the second: curve.csv and curve.html",
    )
    top.add_argument("--nproc", type=int, metavar="N", help="processes for --curve (default: 1)")
    return top


def main(arguments: list[str]) -> int:
    """Averages in this process, or draws the curve."""
    args = parser().parse_args(arguments)
    args.named, args.sources = args.sources, [newest_of_run(source) for source in args.sources]
    if args.curve is not None:
        args.nproc = 1 if args.nproc is None else args.nproc
        return draw_curve(args, arguments)
    if args.nproc is not None:
        rule = "is of --curve: one process writes a model of several."
        raise BadInput(Fault(f"--nproc {args.nproc}", rule, "Leave it out, or give --curve."))
    how = Averaging(
        weights=args.weights or [1.0] * len(args.sources),
        method=args.method,
        base=args.base and newest_of_run(args.base),
        density=args.density,
        scale=args.scale,
    )
    groups.init_process_group()
    groups.init_model_parallel(ParallelSettings())
    try:
        dtype = average(args.sources, how, args.output)
        rounded = f": rounded to it from sums in float32, as {args.sources[0]} has it" if dtype != "float32" else ""
        print(f"wrote {args.output} in {dtype}{rounded}")
    finally:
        groups.destroy()
    return 0
