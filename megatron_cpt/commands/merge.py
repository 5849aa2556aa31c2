"""`megatron-cpt merge PREFIX`: joins what the shards of `prepare --shard I/N` left in PREFIX.pieces."""

import argparse
import os
from pathlib import Path

from megatron_cpt.commands.parsers import command_parser, positive
from megatron_cpt.commands.prepare import summary
from megatron_cpt.preparation.prepare import merge


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = command_parser(
        "merge",
        "Shards of a prepared corpus to one Megatron dataset, the same that a single run writes.",
        "megatron-cpt prepare web/*.jsonl.zst --tokenizer Llama-3-8B --output data/web --shard 1/2",
        "megatron-cpt prepare web/*.jsonl.zst --tokenizer Llama-3-8B --output data/web --shard 2/2",
        "megatron-cpt merge data/web",
    )
    top.add_argument("prefix", metavar="PREFIX", help="the --output of the shards")
    top.add_argument("--parts", type=positive, metavar="N", help="write N datasets, PREFIX-00001-of-N and so on")
    top.add_argument(
        "--part", type=positive, metavar="I", help="only part I (from 1); other parts may be joined at the same time"
    )
    top.add_argument("--workers", type=positive, default=os.cpu_count(), help="parts at a time (default: the cores)")
    top.add_argument("--overwrite", action="store_true", help="replace a finished dataset that was made otherwise")
    return top


def main(arguments: list[str]) -> int:
    args = parser().parse_args(arguments)
    prefix = Path(args.prefix)
    prepared = merge(prefix, args.overwrite, parts=args.parts, part=args.part, workers=args.workers)
    print(summary(prepared, prefix))
    return 0
