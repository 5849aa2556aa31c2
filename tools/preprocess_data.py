#!/usr/bin/env python3
"""Megatron-LM's `tools/preprocess_data.py` over this package: the same flags and the same bytes.

    python tools/preprocess_data.py --input corpus.jsonl --output-prefix corpus \\
        --tokenizer-type HuggingFaceTokenizer --tokenizer-model DIR --append-eod --workers 8

writes corpus_text_document.bin and .idx, a pair for each of --json-keys, with a manifest beside each.
Where that script goes wrong this one differs: a bad or empty line is listed in *.rejected.jsonl instead
of ending or hanging the call, and control tokens that stand in a text stay text.
"""

import argparse
import sys
from pathlib import Path

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.corpus.job import PrepareSettings, rejected_path
from megatron_cpt.corpus.prepare import prepare
from megatron_cpt.runs.status import ExitCode, exit_code_of


def main(arguments: list[str]) -> int:
    """Prepares a dataset for each key; returns the exit code."""
    words = _parser().parse_args(arguments)
    try:
        if words.tokenizer_type != "HuggingFaceTokenizer":
            rule = "is not read here."
            remedy = "Use HuggingFaceTokenizer with a folder that has a tokenizer.json."
            raise BadInput(Fault(f"--tokenizer-type {words.tokenizer_type}", rule, remedy))
        for key in words.json_keys:
            _prepare(words, key)
    except BadInput as error:
        print(f"preprocess_data.py: {error}", file=sys.stderr)
        return exit_code_of(error)
    return ExitCode.DONE


def _prepare(words: argparse.Namespace, key: str) -> None:
    prefix = f"{words.output_prefix}_{key}_document"
    settings = PrepareSettings(
        text_key=key, append_eod=words.append_eod, bos="never", order="as_read", keep_duplicates=True
    )
    prepared = prepare(
        [words.input], words.tokenizer_model, prefix, settings, workers=words.workers, progress=True
    ).training
    print(f"{prefix}: {prepared.documents:,} documents, {prepared.tokens:,} tokens")
    if prepared.rejected:
        print(f"rejected {prepared.rejected:,} documents, see {rejected_path(Path(prefix))}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="JSON lines: a file, folder or glob; .gz and .zst are read too")
    parser.add_argument("--json-keys", nargs="+", default=["text"], help="a dataset is written for each (default text)")
    parser.add_argument("--output-prefix", required=True, help="PREFIX_KEY_document.bin and .idx are written")
    parser.add_argument("--tokenizer-type", required=True, help="HuggingFaceTokenizer")
    parser.add_argument("--tokenizer-model", required=True, metavar="DIR", help="Hugging Face folder")
    parser.add_argument("--append-eod", action="store_true", help="close each document with the eos_token")
    parser.add_argument("--workers", type=int, required=True, help="threads")
    parser.add_argument("--partitions", type=int, default=1, help="accepted; one pass needs no partitions")
    parser.add_argument("--log-interval", type=int, default=1000, help="accepted; a progress bar is shown")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
