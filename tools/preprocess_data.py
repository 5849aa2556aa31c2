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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_cpt.commands.dispatch import report_error
from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.preparation.job import PrepareSettings, rejected_path
from megatron_cpt.preparation.prepare import prepare
from megatron_cpt.runs.folder import ExitCode
from megatron_cpt.tokenizer.formats import (
    Encoded,
    Opened,
    open_folder,
    open_gpt2,
    open_sentencepiece,
)
from megatron_cpt.tokenizer.tiktoken_ranks import open_megatron_ranks
from megatron_cpt.tokenizer.tokenizer import Tokenizer

SENTENCEPIECE = ("SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer")


def main(arguments: list[str]) -> int:
    """Prepares a dataset for each key; returns the exit code."""
    args = _parser().parse_args(arguments)
    try:
        if args.vocab_extra_ids:
            remedy = "Leave it out; a model's extra rows come from its own vocabulary size."
            raise BadInput(Fault(f"--vocab-extra-ids {args.vocab_extra_ids}", "is not added here.", remedy))
        path, opened = _opened(args)
        tokenizer = Tokenizer.of(path, opened, parse_special=args.parse_special)
        for key in args.json_keys:
            _prepare(args, tokenizer, key)
    except Exception as error:
        return report_error("preprocess_data.py", error)
    return ExitCode.DONE


def _opened(args: argparse.Namespace) -> tuple[Path, Opened]:
    """The tokenizer of a type, and the file or folder it came from."""
    special: bool = args.parse_special
    kinds: dict[str, Callable[[], tuple[Path, Opened]]] = {
        "HuggingFaceTokenizer": lambda: (_model(args), open_folder(_model(args), special)),
        "GPT2BPETokenizer": lambda: (
            _file(args, "vocab_file").parent,
            open_gpt2(_file(args, "vocab_file"), _file(args, "merge_file"), special),
        ),
        **dict.fromkeys(SENTENCEPIECE, lambda: (_model(args), open_sentencepiece(_model(args)))),
        "TikTokenizer": lambda: (
            _model(args),
            open_megatron_ranks(
                _model(args),
                args.tiktoken_pattern,
                args.vocab_size or 1 << 17,
                args.tiktoken_num_special_tokens,
                special,
            ),
        ),
        "NullTokenizer": lambda: (Path("NullTokenizer"), open_numbers(_vocabulary_size(args))),
    }
    if args.tokenizer_type not in kinds:
        remedy = f"Use one of {', '.join(kinds)}."
        raise BadInput(Fault(f"--tokenizer-type {args.tokenizer_type}", "is not read here.", remedy))
    return kinds[args.tokenizer_type]()


@dataclass(frozen=True)
class PlainNumbers:
    """Ids as they are written. A text that is not such numbers gives no ids at all, and is rejected for it."""

    vocabulary_size: int

    def encode(self, texts: Sequence[str]) -> Encoded:
        return Encoded.of([self._numbers(text) for text in texts])

    def _numbers(self, text: str) -> list[int]:
        try:
            numbers = [int(word) for word in text.split(" ")]
        except ValueError:
            return []
        return numbers if all(0 <= number < self.vocabulary_size for number in numbers) else []

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    def number_of(self, token: str) -> int | None:
        return int(token) if token.isdecimal() and int(token) < self.vocabulary_size else None

    def token_of(self, number: int) -> str:
        return str(number)

    def token_bytes(self) -> npt.NDArray[np.int64]:
        return np.array([len(str(number)) for number in range(self.vocabulary_size)], np.int64)


def open_numbers(vocabulary_size: int) -> Opened:
    """Numbers below `vocabulary_size`, which is itself the id that closes documents."""
    size = vocabulary_size + 1
    control = np.zeros(size, np.bool_)
    return Opened(
        library=PlainNumbers(size),
        identity=f"numbers below {vocabulary_size}",
        vocabulary_size=size,
        bos=None,
        eos=vocabulary_size,
        adds_bos=False,
        control=control,
        unknown=None,
        says_all=True,
    )


def _model(args: argparse.Namespace) -> Path:
    return _file(args, "tokenizer_model")


def _file(args: argparse.Namespace, name: str) -> Path:
    """A path that the tokenizer type needs."""
    flag = f"--{name.replace('_', '-')}"
    path = getattr(args, name)
    if path is None or not Path(path).exists():
        given = flag if path is None else f"{flag} {path}"
        rule = f"is needed by --tokenizer-type {args.tokenizer_type}." if path is None else "is not there."
        raise BadInput(Fault(given, rule, f"Give {flag} PATH."))
    return Path(path)


def _vocabulary_size(args: argparse.Namespace) -> int:
    if not args.vocab_size:
        raise BadInput(Fault("--vocab-size", "is needed by --tokenizer-type NullTokenizer.", "Give --vocab-size N."))
    return int(args.vocab_size)


def _prepare(args: argparse.Namespace, tokenizer: Tokenizer, key: str) -> None:
    prefix = f"{args.output_prefix}_{key}_{'sentence' if args.split_sentences else 'document'}"
    settings = PrepareSettings(
        text_key=key,
        append_eod=args.append_eod,
        bos="never",
        parse_special=args.parse_special,
        split_sentences=args.split_sentences,
        keep_newlines=args.keep_newlines,
        language=args.lang,
        order="as_read",
        keep_duplicates=True,
        max_rejected=args.max_rejected,
    )
    prepared = prepare(
        [args.input], tokenizer, prefix, settings, workers=args.workers, progress=True, overwrite=args.overwrite
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
    add("--find-optimal-num-workers", action="store_true", help="accepted; --workers decides")
    add("--workers-to-check", nargs="+", type=int, help="accepted")
    add("--max-documents", type=int, help="accepted; only --find-optimal-num-workers counts with it")
    add("--make-vocab-size-divisible-by", type=int, help="accepted; nothing written here depends on it")
    add("--vocab-extra-ids", type=int, default=0, help="0 alone")
    add("--dataset-impl", choices=["mmap", "infer"], help="accepted; the format is mmap's")
    add("--trust-remote-code", action="store_true", help="accepted; no code of a tokenizer's folder is run")
    add("--legacy-tokenizer", action="store_true", help="accepted; the ids are the same")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
