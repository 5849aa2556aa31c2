"""`megatron-cpt inspect PREFIX`: counts, lengths, scores, the first documents as text, integrity."""

import argparse
from dataclasses import asdict

import numpy as np

from megatron_cpt.commands.parsers import command_parser
from megatron_cpt.config.errors import BadInput
from megatron_cpt.corpus.indexed import IndexedDataset
from megatron_cpt.corpus.manifest import Manifest, load_manifest, verify_dataset
from megatron_cpt.corpus.parts import named_by
from megatron_cpt.corpus.scores import read_score, scores_beside
from megatron_cpt.corpus.stream import preview, tokenizer_of
from megatron_cpt.quality.score import histogram_lines

_COUNTS = (
    "documents",
    "tokens",
    "bytes",
    "rejected",
    "filtered",
    "cut",
    "duplicates",
    "near_duplicates",
    "contaminated",
    "loss_tokens",
    "truncated",
    "dtype",
    "vocabulary_size",
    "largest_id",
    "unknown_share",
    "lost_share",
    "tokens_per_word",
    "eod",
    "bos",
    "order",
    "seed",
)
_SHOWN_TOKENS = 400
"""Of each document."""


def main(arguments: list[str]) -> int:
    args = parser().parse_args(arguments)
    left = args.show
    prefixes = named_by(args.prefix)
    for number, prefix in enumerate(prefixes, 1):
        if len(prefixes) > 1:
            print(f"{'' if number == 1 else chr(10)}=== {prefix}, part {number} of {len(prefixes)}")
        left -= _inspect(prefix, left, args)
    return 0


def _inspect(prefix: str, show: int, args: argparse.Namespace) -> int:
    """Prints what is to be told of one dataset, and up to `show` of its documents; returns how many."""
    manifest = verify_dataset(prefix) if args.verify else load_manifest(prefix)
    dataset = IndexedDataset(prefix)
    print(_counts(manifest, dataset))
    if args.histograms:
        print(_histograms(prefix, manifest, dataset))
    tokenizer = tokenizer_of(manifest, args.tokenizer)
    shown = max(0, min(show, dataset.documents))
    for number in range(shown):
        print(f"\n--- document {number}\n{preview(dataset.document(number), tokenizer, _SHOWN_TOKENS)}")
    if args.verify:
        print("\nverified: index and data hashes, ids, document ends")
    return shown


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = command_parser(
        "inspect",
        "Look at a dataset.",
        "megatron-cpt inspect data/medicine --show 1",
    )
    top.add_argument("prefix", metavar="PREFIX")
    top.add_argument("--show", type=int, default=3, metavar="N", help="documents to show (default 3)")
    top.add_argument("--tokenizer", metavar="HF_DIR", help="to show text (default: the manifest's, if there)")
    top.add_argument(
        "--histograms",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="histograms of lengths and scores (default: shown)",
    )
    top.add_argument("--verify", action="store_true", help="read everything and check that it is complete")
    return top


def _counts(manifest: Manifest, dataset: IndexedDataset) -> str:
    values = asdict(manifest)
    lines = [f"{name:<16} {_shown(values[name])}" for name in _COUNTS if values[name] is not None]
    if absent := [name for name in _COUNTS if values[name] is None]:
        lines.append(f"unknown or none  {', '.join(absent)}")
    lengths = np.diff(dataset.document_starts)
    if len(lengths):
        lines.append(
            f"{'document tokens':<16} shortest {lengths.min():,}, median {np.median(lengths):,.0f}, "
            f"longest {lengths.max():,}"
        )
    if manifest.bytes:
        lines.append(f"{'bytes a token':<16} {manifest.bytes / manifest.tokens:.3f}")
    lines.append(f"{'tokenizer':<16} {manifest.tokenizer or 'unknown'}")
    of = " (of samples: the pair was made elsewhere)" if manifest.sampled else ""
    lines.append(f"{'data sha256':<16} {manifest.data_sha256}{of}")
    if manifest.sampled:
        lines.append(f"{'whole sha256':<16} {manifest.whole_sha256 or 'not read yet: --verify reads all'}")
    return "\n".join(lines)


def _histograms(prefix: str, manifest: Manifest, dataset: IndexedDataset) -> str:
    """Of lengths, and of every score beside the dataset."""
    lengths = np.diff(dataset.document_starts)
    parts = [("document tokens", histogram_lines(lengths))] if len(lengths) else []
    for name in scores_beside(prefix):
        try:
            parts.append((f"score {name}", histogram_lines(read_score(prefix, name, manifest))))
        except BadInput as error:
            parts.append((f"score {name}", [fault.rule for fault in error.faults]))
    return "\n".join(line for title, lines in parts for line in ["", title, *(f"  {line}" for line in lines)])


def _shown(value: int | float | str) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) else value
