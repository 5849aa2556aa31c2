#!/usr/bin/env python3
"""Megatron-LM's `tools/merge_datasets.py` over this package: the same flags and the same bytes.

    python tools/merge_datasets.py --input FOLDER --output-prefix merged

writes every pair PREFIX.bin, PREFIX.idx of a folder, by name, one behind the other, with a manifest beside them.
Broken pairs, pairs of different tokenizers or ends of documents, and pairs that hold one another are refused. Held-out
pairs PREFIX.validation are left out, unless the folder holds no others.
"""

import argparse
import sys
from pathlib import Path

from megatron_cpt.commands.dispatch import report_error
from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.corpus.selection import concatenate, datasets_in
from megatron_cpt.runs.folder import ExitCode


def main(arguments: list[str]) -> int:
    """Merges; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, type=Path, help="folder of pairs")
    parser.add_argument("--output-prefix", required=True)
    parser.add_argument("--multimodal", action="store_true", help="refused: only text datasets are read")
    args = parser.parse_args(arguments)
    try:
        if args.multimodal:
            raise BadInput(Fault("--multimodal", "is not read here.", "Merge text datasets."))
        if not args.input.is_dir():
            raise BadInput(Fault(f"--input {args.input}", "is no folder.", "Give the folder of the pairs."))
        prefixes, held_out = datasets_in(args.input)
        for prefix in held_out:
            print(f"{prefix}: is held out, and left out. A folder of such pairs alone is merged.", file=sys.stderr)
        manifest = concatenate(prefixes, args.output_prefix)
    except Exception as error:
        return report_error("merge_datasets.py", error)
    print(f"{args.output_prefix}: {manifest.documents:,} documents, {manifest.tokens:,} tokens")
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
