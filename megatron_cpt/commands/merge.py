"""`megatron-cpt merge PREFIX`: joins what the shards of `prepare --shard I/N` left in PREFIX.pieces."""

import argparse
from pathlib import Path

from megatron_cpt.commands.parsers import command_parser
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
    top.add_argument("--overwrite", action="store_true", help="replace a finished dataset that was made otherwise")
    return top


def main(arguments: list[str]) -> int:
    args = parser().parse_args(arguments)
    prefix = Path(args.prefix)
    print(summary(merge(prefix, args.overwrite), prefix))
    return 0
