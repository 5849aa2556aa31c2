"""`megatron-cpt score PREFIX... --by ngram --reference REF...`: one number a document, beside each dataset."""

import argparse
import importlib.util
import math
import os
from collections.abc import Sequence
from pathlib import Path

from megatron_cpt.commands.parsers import add_engine, command_parser, positive, refuse_address
from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.corpus.selection import SelectedDataset
from megatron_cpt.quality.engines import Engine, OneMachine, RayTasks
from megatron_cpt.quality.fasttext_kenlm import fasttext_method, kenlm_method
from megatron_cpt.quality.field import Field, score_by_field
from megatron_cpt.quality.learned import Sides, classifier_method, importance_method
from megatron_cpt.quality.ngram import ngram_method
from megatron_cpt.quality.score import Method, Scored, open_datasets, open_references, score
from megatron_cpt.runs.ray_tasks import ray_cluster

_METHODS = ("ngram", "classifier", "importance", "model", "fasttext", "kenlm", "field")


def main(arguments: list[str]) -> int:
    args = parser().parse_args(arguments)
    refuse_address(args)
    refuse(_of_other_methods(args))
    datasets = open_datasets(args.datasets)
    name = args.name or args.by
    if args.by == "model":
        if args.engine == "ray":
            remedy = "Leave --engine out: --nproc shares a model among processes, and array tasks the datasets."
            raise BadInput(Fault("--engine ray", "is not for --by model, which runs under torchrun.", remedy))
        # Only a model needs torch.
        from megatron_cpt.commands.score_by_model import score_by_model  # noqa: PLC0415

        scored = score_by_model(args, arguments, name, datasets)
        if isinstance(scored, int):
            return scored
    elif args.engine == "ray":
        with ray_cluster(args.address) as ray:
            scored = _scored(args, name, datasets, RayTasks(ray, args.workers, not args.quiet))
    else:
        scored = _scored(args, name, datasets, OneMachine(args.workers, not args.quiet))
    for done in scored:
        print(_summary(name, done))
    return 0


_OF_METHODS = {
    "reference": ("ngram", "importance"),
    **dict.fromkeys(("positive", "negative", "seed"), ("classifier",)),
    **dict.fromkeys(("field", "missing", "input"), ("field",)),
    "order": ("ngram",),
    "buckets": ("importance",),
    "model_file": ("fasttext", "kenlm"),
    "label": ("fasttext",),
    **dict.fromkeys(("checkpoint", "micro_batch_size", "precision", "nproc", "tensor", "pipeline"), ("model",)),
}
"""The methods that an option is of."""


def _of_other_methods(args: argparse.Namespace) -> list[Fault]:
    """Options that were given and that the method does not have."""
    top = parser()
    return [
        Fault(f"--{name.replace('_', '-')}", f"is of --by {' and '.join(methods)}, not of {args.by}.", "Leave it out.")
        for name, methods in _OF_METHODS.items()
        if args.by not in methods and getattr(args, name) != top.get_default(name)
    ]


def _scored(args: argparse.Namespace, name: str, datasets: Sequence[SelectedDataset], engine: Engine) -> list[Scored]:
    if args.by == "field":
        if args.field is None:
            raise BadInput(Fault("--by field", "needs a field.", "Name it: --field quality."))
        field = Field(args.field, args.text_key, tuple(args.input), args.missing)
        return score_by_field(datasets, name, field, engine, overwrite=args.overwrite)
    return score(datasets, name, _method(args, datasets), engine, overwrite=args.overwrite)


def _method(args: argparse.Namespace, datasets: Sequence[SelectedDataset]) -> Method:
    manifest, text_key = datasets[0].manifest, args.text_key or "text"
    if args.by == "ngram":
        references = open_references("--reference", args.reference, manifest)
        return ngram_method(manifest, references, args.order, text_key)
    if args.by == "importance":
        references = open_references("--reference", args.reference, manifest)
        return importance_method(datasets, references, args.buckets, text_key)
    if args.by == "fasttext":
        return fasttext_method(manifest, args.model_file, args.label)
    if args.by == "kenlm":
        return kenlm_method(manifest, args.model_file)
    if importlib.util.find_spec("sklearn") is None:
        rule = "needs scikit-learn, which is not installed."
        raise BadInput(Fault("--by classifier", rule, "pip install 'megatron-cpt[quality]'."))
    sides = Sides(
        open_references("--positive", args.positive, manifest), open_references("--negative", args.negative, manifest)
    )
    return classifier_method(manifest, sides, args.seed, text_key)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = command_parser(
        "score",
        "Score every document of datasets: PREFIX.NAME.npy beside each.",
        "megatron-cpt score data/medicine --by ngram --reference data/general",
    )
    top.add_argument("datasets", nargs="+", metavar="PREFIX", help="or globs")
    top.add_argument("--by", choices=_METHODS, required=True, help="see docs/quality.md: what each is good for")
    top.add_argument("--name", help="name of the score (default: the method)")
    references = "datasets, selections or text files"
    top.add_argument(
        "--reference", action="extend", nargs="+", default=[], metavar="REF", help=f"ngram, importance: {references}"
    )
    top.add_argument(
        "--positive", action="extend", nargs="+", default=[], metavar="REF", help=f"classifier: {references}"
    )
    top.add_argument(
        "--negative", action="extend", nargs="+", default=[], metavar="REF", help=f"classifier: {references}"
    )
    top.add_argument(
        "--field", metavar="KEY", help="field: key of the number in the JSON lines, or its column: metadata.score"
    )
    top.add_argument(
        "--missing", type=_finite, metavar="NUMBER", help="field: score of documents without one (default: refused)"
    )
    top.add_argument(
        "--input", action="extend", nargs="+", default=[], metavar="FILE", help="field: the files, where they moved"
    )
    top.add_argument("--text-key", help="key of the text in files (default: text, or as prepared)")
    top.add_argument("--order", type=int, default=3, metavar="N", help="ngram: tokens of the longest (default 3)")
    top.add_argument("--buckets", type=positive, default=10_000, help="importance: hashed n-grams (default 10,000)")
    top.add_argument(
        "--model-file",
        type=Path,
        metavar="FILE",
        help="fasttext: .bin or .ftz; kenlm: ARPA or binary; trusted ones alone",
    )
    top.add_argument("--label", metavar="LABEL", help="fasttext: whose probability is the score, such as __label__en")
    top.add_argument("--checkpoint", metavar="CHECKPOINT_OR_HF", help="model: RUN/checkpoints/step-..., or HF folder")
    top.add_argument("--micro-batch-size", type=positive, default=8, metavar="N", help="model: windows at a time")
    top.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="model: of its weights")
    top.add_argument("--nproc", type=positive, default=1, metavar="N", help="model: processes on this machine")
    top.add_argument("--tensor", type=positive, default=1, metavar="N", help="model: tensor-parallel size")
    top.add_argument("--pipeline", type=positive, default=1, metavar="N", help="model: pipeline stages")
    top.add_argument("--seed", type=int, default=1234, help="classifier: order of the examples")
    top.add_argument("--workers", type=positive, default=os.cpu_count(), help="threads (default: the cores)")
    add_engine(top, "--workers of this one")
    top.add_argument("--overwrite", action="store_true", help="replace a score of this name that was made otherwise")
    top.add_argument("--quiet", action="store_true", help="no progress bar")
    return top


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError("must be a finite number")
    return number


def _summary(name: str, done: Scored) -> str:
    record = done.record
    scores = "no documents" if record.lowest is None else f"{record.lowest:.6g} to {record.highest:.6g}"
    reused = " (already there, made in the same way)" if done.reused else ""
    missing = f"; {done.missing:,} without a number have that of --missing" if done.missing else ""
    return f"{done.prefix}: {name} of {record.documents:,} documents, {scores}{missing}{reused}"
