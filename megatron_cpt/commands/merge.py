"""`megatron-cpt merge PREFIX`: joins what the shards of `prepare --shard I/N` left in PREFIX.pieces."""

import argparse
from pathlib import Path

from megatron_cpt.commands.prepare import summary
from megatron_cpt.preparation.prepare import merge


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="megatron-cpt merge",
        description="Shards of a prepared corpus to one Megatron dataset, the same that a single run writes.",
    )
    parser.add_argument("prefix", metavar="PREFIX", help="the --output of the shards")
    parser.add_argument("--overwrite", action="store_true", help="replace a finished dataset that was made otherwise")
    args = parser.parse_args(arguments)
    prefix = Path(args.prefix)
    print(summary(merge(prefix, args.overwrite), prefix))
    return 0
