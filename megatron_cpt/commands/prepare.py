"""`megatron-cpt prepare CORPUS... --tokenizer HF_DIR --output PREFIX`"""

import argparse
import os
from pathlib import Path

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.corpus.manifest import Manifest
from megatron_cpt.corpus.prepare import (
    Prepared,
    PrepareSettings,
    duplicates_path,
    prepare,
    rejected_path,
    validation_prefix,
)


def main(arguments: list[str]) -> int:
    words = _parser().parse_args(arguments)
    # The tokenizer library starts its threads at its first batch and reads their number then.
    os.environ["RAYON_NUM_THREADS"] = str(words.workers)
    settings = PrepareSettings(
        text_key=words.text_key,
        eod=words.eod,
        bos=words.bos,
        order=words.order,
        seed=words.seed,
        holdout=_share("--holdout", words.holdout),
        keep_duplicates=words.keep_duplicates,
        max_rejected=_share("--max-rejected", words.max_rejected),
    )
    prepared = prepare(words.corpus, words.tokenizer, words.output, settings, progress=not words.quiet, fast=words.fast)
    print(_told(prepared, Path(words.output)))
    return 0


def _parser() -> argparse.ArgumentParser:
    defaults = PrepareSettings()
    parser = argparse.ArgumentParser(
        prog="megatron-cpt prepare", description="Documents to a Megatron dataset: PREFIX.bin, .idx, .manifest.json."
    )
    parser.add_argument("corpus", nargs="+", help="files, folders or globs: .jsonl, .json (plain, .gz, .zst), .txt")
    parser.add_argument("--tokenizer", required=True, metavar="HF_DIR", help="folder with tokenizer.json")
    parser.add_argument("--output", required=True, metavar="PREFIX")
    parser.add_argument("--text-key", default=defaults.text_key, help="key of the text in a JSON line")
    parser.add_argument("--eod", metavar="TOKEN", help="token that closes each document (default: eos_token)")
    parser.add_argument(
        "--bos", choices=["auto", "always", "never"], default=defaults.bos, help="auto: as the tokenizer does"
    )
    parser.add_argument("--order", choices=["shuffled", "as_read"], default=defaults.order)
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of the shuffled order")
    parser.add_argument("--holdout", default="0%", metavar="SHARE", help="to PREFIX.validation, for example 0.5%%")
    parser.add_argument("--keep-duplicates", action="store_true", help="exact copies of documents stay")
    parser.add_argument("--max-rejected", default="1%", metavar="SHARE", help="documents that may be rejected")
    parser.add_argument("--workers", type=_positive, default=os.cpu_count(), help="threads (default: the cores)")
    parser.add_argument(
        "--fast",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="gigatoken, where it is installed and proven to give the same ids",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _share(name: str, text: str) -> float:
    """A share of 0 to 1 from `0.5%` or `0.005`."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise BadInput(Fault(f"{name} {text}", "is not a share.", "Write a percentage such as 0.5%."))
    return share


def _told(prepared: Prepared, output: Path) -> str:
    lines = [_line(output, prepared.training)]
    if prepared.validation is not None:
        lines.append(_line(validation_prefix(output), prepared.validation))
    if prepared.training.rejected:
        lines.append(f"rejected {prepared.training.rejected:,} documents, see {rejected_path(output)}")
    if prepared.training.duplicates:
        lines.append(f"left out {prepared.training.duplicates:,} exact copies, see {duplicates_path(output)}")
    if prepared.reused:
        lines.append("whole already, from the same inputs and settings: nothing was done")
    return "\n".join(lines)


def _line(prefix: Path, manifest: Manifest) -> str:
    size = f", {manifest.bytes:,} bytes of text" if manifest.bytes is not None else ""
    return f"{prefix}: {manifest.documents:,} documents, {manifest.tokens:,} tokens{size}"
