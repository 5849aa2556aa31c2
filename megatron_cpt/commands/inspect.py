"""`megatron-cpt inspect PREFIX`: counts, the first documents as text, integrity."""

import argparse
import textwrap
from dataclasses import asdict
from pathlib import Path

import numpy as np

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.corpus.indexed import IndexedDataset
from megatron_cpt.corpus.manifest import Manifest, load_manifest
from megatron_cpt.corpus.tokenize import Tokenizer
from megatron_cpt.corpus.verify import verify_dataset

COUNTS = (
    "documents",
    "tokens",
    "bytes",
    "rejected",
    "duplicates",
    "dtype",
    "vocabulary_size",
    "eod",
    "bos",
    "order",
    "seed",
)
SHOWN_TOKENS = 400
"""Of each document."""


def main(arguments: list[str]) -> int:
    words = _parser().parse_args(arguments)
    manifest = verify_dataset(words.prefix) if words.verify else load_manifest(words.prefix)
    dataset = IndexedDataset(words.prefix)
    print(_counts(manifest, dataset))
    tokenizer = _tokenizer(words.tokenizer, manifest)
    for number in range(min(words.show, dataset.documents)):
        print(f"\n--- document {number}\n{_document(dataset.document(number), tokenizer)}")
    if words.verify:
        print("\nverified: index and data hashes, ids, document ends")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="megatron-cpt inspect", description="Look at a dataset.")
    parser.add_argument("prefix", metavar="PREFIX")
    parser.add_argument("--show", type=int, default=3, metavar="N", help="documents to show (default 3)")
    parser.add_argument("--tokenizer", metavar="HF_DIR", help="to show text (default: the manifest's, if there)")
    parser.add_argument("--verify", action="store_true", help="read everything and prove it whole")
    return parser


def _counts(manifest: Manifest, dataset: IndexedDataset) -> str:
    values = asdict(manifest)
    lines = [f"{name:<16} {_shown(values[name])}" for name in COUNTS]
    lengths = np.diff(dataset.document_starts)
    if len(lengths):
        lines.append(
            f"{'document tokens':<16} shortest {lengths.min():,}, median {np.median(lengths):,.0f}, "
            f"longest {lengths.max():,}"
        )
    if manifest.bytes:
        lines.append(f"{'bytes a token':<16} {manifest.bytes / manifest.tokens:.3f}")
    lines.append(f"{'tokenizer':<16} {manifest.tokenizer or 'unknown'}")
    lines.append(f"{'data sha256':<16} {manifest.data_sha256}")
    return "\n".join(lines)


def _shown(value: int | str | None) -> str:
    if value is None:
        return "unknown or none"
    return f"{value:,}" if isinstance(value, int) else value


def _tokenizer(folder: str | None, manifest: Manifest) -> Tokenizer | None:
    """The tokenizer asked for, or the manifest's where it still is. BadInput: another one was asked for."""
    if folder is not None:
        tokenizer = Tokenizer.load(folder)
        if manifest.tokenizer not in (None, tokenizer.identity):
            rule = "is not the tokenizer that the dataset was made with."
            raise BadInput(Fault(f"--tokenizer {folder}", rule, f"It was {manifest.tokenizer_folder}."))
        return tokenizer
    if manifest.tokenizer_folder is None or not Path(manifest.tokenizer_folder, "tokenizer.json").is_file():
        return None
    tokenizer = Tokenizer.load(manifest.tokenizer_folder)
    return tokenizer if tokenizer.identity == manifest.tokenizer else None


def _document(ids: np.ndarray, tokenizer: Tokenizer | None) -> str:
    more = "" if len(ids) <= SHOWN_TOKENS else f" ... ({len(ids):,} tokens)"
    head = ids[:SHOWN_TOKENS]
    text = tokenizer.decode(head.tolist()) if tokenizer else textwrap.fill(" ".join(map(str, head.tolist())))
    # Documents are foreign text: nothing in them may steer the terminal.
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text) + more
