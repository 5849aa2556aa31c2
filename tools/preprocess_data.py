#!/usr/bin/env python3
"""Megatron-LM's `tools/preprocess_data.py` over this package: the same flags and the same bytes.

    python tools/preprocess_data.py --input corpus.jsonl --output-prefix corpus \\
        --tokenizer-type HuggingFaceTokenizer --tokenizer-model DIR --append-eod --workers 8

writes corpus_text_document.bin and .idx (corpus_text_sentence with --split-sentences), a pair for each of
--json-keys, with a manifest beside each. Where that script goes wrong this one differs: a bad or empty line is
listed in *.rejected.jsonl instead of ending or hanging the call, a call that was killed goes on where it was, and
control tokens that stand in a text stay text unless --parse-special is given.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from megatron_cpt.commands.dispatch import report_error
from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.preparation.job import PrepareSettings, rejected_path
from megatron_cpt.preparation.prepare import prepare
from megatron_cpt.runs.status import ExitCode
from megatron_cpt.tokenizer.encoded import Opened
from megatron_cpt.tokenizer.huggingface import open_folder, open_gpt2
from megatron_cpt.tokenizer.plain_numbers import open_numbers
from megatron_cpt.tokenizer.sentencepiece_model import open_sentencepiece
from megatron_cpt.tokenizer.tiktoken_ranks import open_megatron_ranks
from megatron_cpt.tokenizer.tokenize import Tokenizer

SENTENCEPIECE = ("SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer")


def main(arguments: list[str]) -> int:
    """Prepares a dataset for each key; returns the exit code."""
    words = _parser().parse_args(arguments)
    try:
        path, opened = _opened(words)
        tokenizer = Tokenizer.of(path, opened, parse_special=words.parse_special)
        for key in words.json_keys:
            _prepare(words, tokenizer, key)
    except Exception as error:
        return report_error("preprocess_data.py", error)
    return ExitCode.DONE


def _opened(words: argparse.Namespace) -> tuple[Path, Opened]:
    """The tokenizer of a type, and the file or folder it came from."""
    special: bool = words.parse_special
    kinds: dict[str, Callable[[], tuple[Path, Opened]]] = {
        "HuggingFaceTokenizer": lambda: (_model(words), open_folder(_model(words), special)),
        "GPT2BPETokenizer": lambda: (
            _file(words, "vocab_file").parent,
            open_gpt2(_file(words, "vocab_file"), _file(words, "merge_file"), special),
        ),
        **dict.fromkeys(SENTENCEPIECE, lambda: (_model(words), open_sentencepiece(_model(words)))),
        "TikTokenizer": lambda: (
            _model(words),
            open_megatron_ranks(
                _model(words),
                words.tiktoken_pattern,
                words.vocab_size or 1 << 17,
                words.tiktoken_num_special_tokens,
                special,
            ),
        ),
        "NullTokenizer": lambda: (Path("NullTokenizer"), open_numbers(_vocabulary_size(words))),
    }
    if words.tokenizer_type not in kinds:
        remedy = f"Use one of {', '.join(kinds)}."
        raise BadInput(Fault(f"--tokenizer-type {words.tokenizer_type}", "is not read here.", remedy))
    return kinds[words.tokenizer_type]()


def _model(words: argparse.Namespace) -> Path:
    return _file(words, "tokenizer_model")


def _file(words: argparse.Namespace, name: str) -> Path:
    """A path that the tokenizer type needs."""
    flag = f"--{name.replace('_', '-')}"
    path = getattr(words, name)
    if path is None or not Path(path).exists():
        given = flag if path is None else f"{flag} {path}"
        rule = f"is needed by --tokenizer-type {words.tokenizer_type}." if path is None else "is not there."
        raise BadInput(Fault(given, rule, f"Give {flag} PATH."))
    return Path(path)


def _vocabulary_size(words: argparse.Namespace) -> int:
    if not words.vocab_size:
        raise BadInput(Fault("--vocab-size", "is needed by --tokenizer-type NullTokenizer.", "Give --vocab-size N."))
    return int(words.vocab_size)


def _prepare(words: argparse.Namespace, tokenizer: Tokenizer, key: str) -> None:
    prefix = f"{words.output_prefix}_{key}_{'sentence' if words.split_sentences else 'document'}"
    settings = PrepareSettings(
        text_key=key,
        append_eod=words.append_eod,
        bos="never",
        parse_special=words.parse_special,
        split_sentences=words.split_sentences,
        keep_newlines=words.keep_newlines,
        language=words.lang,
        order="as_read",
        keep_duplicates=True,
        max_rejected=words.max_rejected,
    )
    prepared = prepare(
        [words.input], tokenizer, prefix, settings, workers=words.workers, progress=True, overwrite=words.overwrite
    ).training
    print(f"{prefix}: {prepared.documents:,} documents, {prepared.tokens:,} tokens")
    if prepared.rejected:
        print(f"rejected {prepared.rejected:,} documents, see {rejected_path(Path(prefix))}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--input", required=True, help="JSON lines or parquet: a file, folder or glob; .gz and .zst are read too")
    add("--json-keys", nargs="+", default=["text"], help="a dataset is written for each (default text)")
    add("--output-prefix", required=True, help="PREFIX_KEY_document.bin and .idx are written")
    add("--tokenizer-type", required=True, help="HuggingFaceTokenizer, GPT2BPETokenizer, SentencePieceTokenizer, ...")
    add("--tokenizer-model", metavar="PATH", help="Hugging Face folder, sentencepiece .model, or TikTokenizer's JSON")
    add("--vocab-file", help="GPT2BPETokenizer's vocab.json")
    add("--merge-file", help="GPT2BPETokenizer's merges.txt")
    add("--vocab-size", type=int, help="of NullTokenizer, and of TikTokenizer with its control tokens")
    add("--tiktoken-pattern", choices=["v1", "v2"], default="v2")
    add("--tiktoken-num-special-tokens", type=int, default=1000)
    add("--append-eod", action="store_true", help="close each document with the tokenizer's end of text")
    add("--split-sentences", action="store_true", help="a sequence for each sentence, by nltk's Punkt")
    add("--keep-newlines", action="store_true", help="blanks between sentences stay with the one before")
    add("--lang", default="english", help="of the sentences")
    add("--parse-special", action="store_true", help="control tokens in the text become such tokens")
    add("--max-rejected", type=float, default=0.01, help="share of documents, 0 to 1, that may be rejected")
    add("--overwrite", action="store_true", help="replace a finished dataset that was made otherwise")
    add("--workers", type=int, required=True, help="processes")
    add("--partitions", type=int, default=1, help="accepted; one pass needs no partitions")
    add("--log-interval", type=int, default=1000, help="accepted; a progress bar is shown")
    add("--keep-sequential-samples", action="store_true", help="accepted; the order of the input is always kept")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
