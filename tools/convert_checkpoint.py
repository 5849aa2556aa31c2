#!/usr/bin/env python3
"""Megatron-LM's `tools/checkpoint/convert.py` over this package: Hugging Face folders in, checkpoints out, and back.

    python tools/convert_checkpoint.py --model-type GPT --loader hf --saver core --load-dir HF_DIR --save-dir CHECKPOINT
    python tools/convert_checkpoint.py --model-type GPT --loader core --saver hf --load-dir CHECKPOINT --save-dir HF_DIR

The second takes a checkpoint of ours or, with `--hf-config DIR`, a torch_dist one of Megatron-LM or Megatron-Bridge.
A checkpoint of ours loads into any layout, so that no target sizes need be named: those flags are accepted, and change
nothing. Families and their names are docs/families.md's; `megatron-cpt convert` does the same and more.
"""

import argparse
import sys
from pathlib import Path

from megatron_cpt.checkpoint.convert import checkpoint_from_hf, hf_from_checkpoint, hf_from_megatron
from megatron_cpt.commands.dispatch import report_error
from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.parallel import groups
from megatron_cpt.runs.folder import ExitCode

HF_LOADERS = ("hf", "llama_mistral")  # Megatron-LM's name of the loader of Hugging Face folders


def main(arguments: list[str]) -> int:
    """Converts in one process; returns the exit code."""
    args = _parser().parse_args(arguments)
    groups.init_process_group()
    groups.init_model_parallel(ParallelSettings())
    try:
        if args.loader in HF_LOADERS and args.saver == "core":
            checkpoint_from_hf(args.load_dir, args.save_dir)
        elif args.loader == "core" and args.saver == "hf" and args.hf_config is None:
            hf_from_checkpoint(args.load_dir, args.save_dir)
        elif args.loader == "core" and args.saver == "hf":
            hf_from_megatron(args.load_dir, args.hf_config, args.save_dir)
        else:
            rule = "is no conversion between Hugging Face and Megatron-Core."
            remedy = "Use --loader hf --saver core, or --loader core --saver hf."
            raise BadInput(Fault(f"--loader {args.loader} --saver {args.saver}", rule, remedy))
    except Exception as error:
        return report_error("convert_checkpoint.py", error)
    finally:
        groups.destroy()
    print(f"wrote {args.save_dir}")
    return ExitCode.DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-type", required=True, choices=["GPT"], help="GPT: every family is one")
    parser.add_argument("--loader", required=True, choices=["core", *HF_LOADERS], help="kind of what is read")
    parser.add_argument("--saver", required=True, choices=["core", "hf"], help="kind of what is written")
    parser.add_argument("--load-dir", required=True, type=Path, help="folder to read")
    parser.add_argument("--save-dir", required=True, type=Path, help="folder to write")
    parser.add_argument("--hf-config", type=Path, help="config.json of the model, for Megatron-LM's checkpoints")
    for size in ("tensor", "pipeline"):
        parser.add_argument(f"--target-{size}-parallel-size", type=int, help="accepted; not needed")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
