"""`megatron-cpt convert`: Hugging Face in and out, and the proof that both models are the same."""

import argparse
from dataclasses import asdict
from pathlib import Path

from megatron_cpt.checkpoint.convert import (
    LONGEST,
    checkpoint_from_hf,
    hf_from_checkpoint,
    hf_from_megatron,
    is_own_with_others,
    length_beyond_edges,
    verify,
)
from megatron_cpt.checkpoint.from_megatron import checkpoint_from_megatron
from megatron_cpt.checkpoint.vocabulary import extend_vocabulary
from megatron_cpt.commands.parsers import command_parser
from megatron_cpt.config.errors import BadInput, Fault, NumericsFault
from megatron_cpt.config.load import load_config
from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.families.shape import read_shape
from megatron_cpt.parallel import groups
from megatron_cpt.planning.megatron_lm_checkpoint import checkpoint_state, iteration_folder, read_checkpoint
from megatron_cpt.planning.plan import make_plan
from megatron_cpt.runs.folder import refuse_to_replace, write_checked_json
from megatron_cpt.train.initial_loss_check import NotCompared, compute_reference


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = command_parser(
        "convert",
        __doc__,
        "megatron-cpt convert from-hf Llama-3-8B checkpoints/Llama-3-8B",
        "megatron-cpt convert to-hf runs/medicine Llama-3-8B-medicine",
        "megatron-cpt convert verify runs/medicine Llama-3-8B-medicine",
        "megatron-cpt convert extend Llama-3-8B Llama-3-8B-extended --new-tokens angiogram stent",
    )
    actions = top.add_subparsers(dest="action", required=True)

    from_hf = actions.add_parser("from-hf", help="a Hugging Face folder to a sharded checkpoint of its weights")
    from_hf.add_argument("hf", type=Path, metavar="HF_DIR", help="the folder to read")
    from_hf.add_argument("output", type=Path, metavar="OUTPUT", help="the checkpoint to write")

    to_hf = actions.add_parser("to-hf", help="a checkpoint to a Hugging Face folder")
    to_hf.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="RUN/checkpoints/step-..., or RUN")
    to_hf.add_argument("output", type=Path, metavar="OUTPUT", help="the folder to write")
    to_hf.add_argument(
        "--hf-config",
        type=Path,
        metavar="DIR",
        help="for a torch_dist checkpoint of Megatron-LM or Megatron-Bridge: config.json and tokenizer of its model; "
        "of a model that reads pictures: the folder with its other tensors, where it is in another place now",
    )
    to_hf.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="of the weights (default: each tensor's in the parent)",
    )

    to_hf.add_argument(
        "--shard-gib", type=float, default=4.0, help="size of a file of weights, in GiB, about (default: %(default)s)"
    )

    underway = actions.add_parser(
        "from-megatron",
        help="a torch_dist checkpoint of Megatron-LM to one of a run here, with optimizer state, to go on from",
    )
    underway.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="its folder, or that of an iteration")
    underway.add_argument("output", type=Path, metavar="OUTPUT", help="the checkpoint to write")
    underway.add_argument(
        "--hf-config", type=Path, metavar="DIR", required=True, help="config.json and tokenizer of its model"
    )

    record = actions.add_parser(
        "record-reference", help="transformers' loss of a run's first sequences, for its initial loss check"
    )
    record.add_argument("config", metavar="RUN.yaml", help="the run")
    record.add_argument("output", type=Path, metavar="OUTPUT.json", help="the recording to write")
    record.add_argument("overrides", nargs="*", metavar="section.key=value", help="replaces a value of RUN.yaml")

    compare = actions.add_parser("verify", help="logits of Megatron-Core and transformers on the same tokens")
    compare.add_argument("source", type=Path, metavar="CHECKPOINT_OR_HF", help="for Megatron-Core")
    compare.add_argument("hf", type=Path, metavar="HF_DIR", help="for transformers")
    compare.add_argument(
        "--tolerance", type=float, default=1e-3, help="largest difference of a logit in fp32 (default: %(default)s)"
    )
    compare.add_argument(
        "--precision",
        choices=["fp32", "bf16"],
        default="fp32",
        help="Megatron-Core's arithmetic; bf16 is judged by divergence and first choices beside transformers' bf16",
    )

    compare.add_argument("--sequences", type=int, default=1, metavar="N", help="random ones (default: %(default)s)")
    compare.add_argument(
        "--length",
        type=int,
        metavar="TOKENS",
        help="of each sequence (default: 64 more than the model's longest window has, at least 128; 128 where that is "
        f"more than {LONGEST:,})",
    )

    extend = actions.add_parser("extend", help="a Hugging Face folder to one with more tokens, or another tokenizer")
    extend.add_argument("hf", type=Path, metavar="HF_DIR", help="the folder to read")
    extend.add_argument("output", type=Path, metavar="OUTPUT", help="the folder to write")
    which = extend.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--new-tokens", action="extend", nargs="+", metavar="TOKEN", help="words to add to the tokenizer"
    )
    which.add_argument("--tokenizer", type=Path, metavar="DIR", help="folder of the tokenizer to use instead")
    extend.add_argument(
        "--new-rows",
        choices=["mean", "random"],
        default="mean",
        help="of new tokens: the mean of their old pieces' rows, or random with the old rows' statistics",
    )
    extend.add_argument("--seed", type=int, default=1234, help="of random rows (default: %(default)s)")
    return top


def main(arguments: list[str]) -> int:
    """Runs one conversion in this process."""
    args = parser().parse_args(arguments)
    if args.action == "extend":
        words = args.new_tokens or ()
        made = extend_vocabulary(args.hf, args.output, words, args.tokenizer, args.new_rows, args.seed)
        print(
            f"wrote {args.output}: {made.rows} rows, of which {made.kept} kept, {made.averaged} averaged from old "
            f"pieces, {made.drawn} random"
        )
        return 0
    groups.init_process_group()
    groups.init_model_parallel(ParallelSettings())
    try:
        if args.action == "from-hf":
            _report_written(args.output, checkpoint_from_hf(args.hf, args.output))
        elif args.action == "to-hf":
            _report_written(args.output, _write_hf(args))
        elif args.action == "from-megatron":
            found = read_checkpoint(iteration_folder(args.checkpoint))
            state = checkpoint_state(found, str(args.checkpoint))
            checkpoint_from_megatron(args.checkpoint, args.hf_config, args.output, state)
            print(
                f"wrote {args.output}: iteration {state.step}, with main weights and moments of {state.updates} updates"
            )
        elif args.action == "record-reference":
            refuse_to_replace([args.output])
            _record_start(args.config, args.overrides, args.output)
            print(f"wrote {args.output}")
        else:
            _report_difference(args)
    finally:
        groups.destroy()
    return 0


def _write_hf(args: argparse.Namespace) -> str:
    """Writes the folder of a checkpoint of ours or, where a config is given beside it, of another program's.

    Returns how many tensors were rounded, and from what to what; empty where none was.
    """
    shard_bytes = int(args.shard_gib * 1024**3)
    if args.hf_config is None or is_own_with_others(args.checkpoint):
        return hf_from_checkpoint(args.checkpoint, args.output, args.dtype, shard_bytes, args.hf_config)
    return hf_from_megatron(args.checkpoint, args.hf_config, args.output, args.dtype, shard_bytes)


def _report_written(output: Path, rounded: str) -> None:
    """Prints what was written, and what of it was rounded."""
    print(f"wrote {output}{f'; rounded: {rounded}' if rounded else ''}")


def _record_start(run: str, overrides: list[str], output: Path) -> None:
    """Writes what `model.initial_loss_check.reference_file` names. Raises BadInput where the model does not fit this
    machine."""
    config = load_config(run, overrides)
    one_copy = config.parallel.tensor * config.parallel.pipeline
    reference = compute_reference(config, make_plan(config, one_copy), print)
    if isinstance(reference, NotCompared):
        rule = "the whole model fits neither this machine's GPU nor its memory."
        raise BadInput(Fault(f"model.hf = {config.model.hf}", rule, "Record on a machine where it does."))
    write_checked_json(output, asdict(reference))


def _report_difference(args: argparse.Namespace) -> None:
    """Prints how far two models are apart. Raises NumericsFault where they are not the same model.

    In bf16: where ours is more than three times as far from fp32 as transformers' own bf16 is, or gives other first
    choices at two in a hundred positions more.
    """
    found = verify(args.source, args.hf, args.precision, args.sequences, args.length)
    assert found is not None, "one process is the last stage"
    difference, own = found
    print(
        f"logits of Megatron-Core in {args.precision} and transformers in fp32 at {difference.positions} positions: "
        f"largest difference {difference.largest:.3g}, mean {difference.mean:.3g}, "
        f"divergence {difference.divergence:.3g} nats, same first choice at {difference.same_choice:.2%}"
    )
    beyond = length_beyond_edges(read_shape(args.hf))
    if difference.positions // args.sequences < beyond:
        print(f"no sequence was longer than the model's longest window: --length {beyond} is longer")
    if own is None:
        if not difference.largest <= args.tolerance:
            raise NumericsFault(f"the models differ by {difference.largest:.3g}, more than {args.tolerance:g}")
        return
    print(f"transformers in bf16: divergence {own.divergence:.3g} nats, same first choice at {own.same_choice:.2%}")
    near = difference.divergence <= 3 * own.divergence + 1e-6
    if not (near and difference.same_choice >= own.same_choice - 0.02):
        raise NumericsFault("the models differ by more than bf16 explains")
