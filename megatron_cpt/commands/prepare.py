"""`megatron-cpt prepare CORPUS... --tokenizer HF_DIR --output PREFIX`"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_cpt.commands.parsers import add_engine, command_parser, positive, refuse_address
from megatron_cpt.config.errors import BadInput, Fault, printable
from megatron_cpt.config.units import parse_count, parse_share
from megatron_cpt.corpus.manifest import Manifest
from megatron_cpt.corpus.stream import expand_paths
from megatron_cpt.preparation.chat_template import ChatTemplate
from megatron_cpt.preparation.contamination import EvaluationSet, read_contamination
from megatron_cpt.preparation.dry_run import DryRun, dry_run
from megatron_cpt.preparation.encode_documents import TextCounts
from megatron_cpt.preparation.inputs import not_read_line
from megatron_cpt.preparation.job import (
    PrepareSettings,
    contaminated_path,
    duplicates_path,
    near_duplicates_path,
    rejected_path,
    validation_prefix,
)
from megatron_cpt.preparation.pool import PATIENCE_SECONDS
from megatron_cpt.preparation.prepare import Prepared, Shard, prepare, prepare_shard
from megatron_cpt.preparation.ray_engine import prepare_on_ray
from megatron_cpt.preparation.text_filters import FILTERS
from megatron_cpt.tasks.task_files import evaluation_sets
from megatron_cpt.tokenizer.tokenizer import Tokenizer

_MOST_PERCENT = 100
"""`--holdout 5` has no unit, and nobody holds out five tokens."""


def main(arguments: list[str]) -> int:
    args = parser().parse_args(arguments)
    if args.train_on and not args.chat:
        raise BadInput(Fault("--train-on", "is of conversations.", "Give --chat, or leave --train-on out."))
    if args.chat and args.text_key:
        rule = "contradict: a conversation's keys are known."
        raise BadInput(Fault("--chat and --text-key", rule, "Leave --text-key out."))
    for flag, given in (("--keep-newlines", args.keep_newlines), ("--lang", args.lang is not None)):
        if given and not args.split_sentences:
            remedy = f"Give --split-sentences, or leave {flag} out."
            raise BadInput(Fault(flag, "is of sentences, and the text is not split into them.", remedy))
    text_keys = args.text_key or [PrepareSettings().text_key]
    if len(text_keys) > 1 and "-" in args.corpus:
        rule = "cannot be read once for each of several --text-key."
        raise BadInput(Fault("-", rule, "Give files, or one key a call."))
    if args.overwrite and args.shard:
        remedy = "Give it to `megatron-cpt merge`."
        raise BadInput(Fault("--overwrite", "has no meaning for a shard, which replaces nothing.", remedy))
    if args.output.endswith("/"):
        remedy = f"Give a prefix in it, such as {args.output}corpus."
        raise BadInput(Fault(f"--output {args.output}", "is a folder.", remedy))
    if args.limit and args.shard:
        rule = "shows the first documents of the whole input."
        raise BadInput(Fault("--limit with --shard", rule, "Leave --shard out to look, and --limit to prepare."))
    if args.engine == "ray" and (args.shard or args.limit):
        rule = f"contradict: --{'shard' if args.shard else 'limit'} is of this machine."
        raise BadInput(Fault(f"--engine ray and --{'shard' if args.shard else 'limit'}", rule, "Give one of them."))
    refuse_address(args)
    evaluation = evaluation_sets(args.decontaminate)
    for key in text_keys:
        if args.limit:
            settings = _settings(args, key)
            print(_shown(dry_run(args.corpus, args.tokenizer, args.output, settings, args.limit, evaluation), settings))
            continue
        output = Path(args.output if len(text_keys) == 1 else f"{args.output}_{key}")
        print(_prepare(args, _settings(args, key), evaluation, output))
    if args.chat and args.shard is None:
        tokenizer = Tokenizer.load(args.tokenizer, args.eod, parse_special=True)
        if warning := ChatTemplate.load(tokenizer).unknown_stop():
            print(f"warning: {warning}", file=sys.stderr)
    return 0


def _prepare(
    args: argparse.Namespace, settings: PrepareSettings, evaluation: Sequence[EvaluationSet], output: Path
) -> str:
    how = {"evaluation": evaluation, "progress": not args.quiet, "fast": args.fast}
    if args.engine == "ray":
        how |= {"address": args.address, "overwrite": args.overwrite}
        return summary(prepare_on_ray(args.corpus, args.tokenizer, output, settings, **how), output)
    how |= {"workers": args.workers, "patience": args.worker_timeout}
    if args.shard is None:
        return summary(prepare(args.corpus, args.tokenizer, output, settings, overwrite=args.overwrite, **how), output)
    done = prepare_shard(args.corpus, args.tokenizer, output, settings, args.shard, **how)
    return (
        f"{output}: shard {args.shard.number} of {args.shard.of}: {done.documents:,} documents, {done.tokens:,} "
        f"tokens, {done.rejected:,} rejected. When every shard is there: megatron-cpt merge {output}"
    )


def _settings(args: argparse.Namespace, key: str) -> PrepareSettings:
    share, tokens = _holdout(args.holdout)
    return PrepareSettings(
        text_key=key,
        id_key=args.id_key,
        where=args.where,
        document_per_line=args.document_per_line,
        train_on=(args.train_on or "responses") if args.chat else None,
        filters=list(dict.fromkeys(args.filter)) or None,
        min_length=args.min_length,
        max_length=args.max_length,
        truncate=args.truncate,
        eod=args.eod,
        bos=args.bos,
        parse_special=args.parse_special,
        split_sentences=args.split_sentences,
        keep_newlines=args.keep_newlines,
        language=args.lang or PrepareSettings().language,
        order=args.order,
        seed=args.seed,
        holdout=share,
        holdout_tokens=tokens,
        keep_duplicates=args.keep_duplicates,
        dedup_against={str(path): "" for path in expand_paths(args.dedup_against)} or None,
        near_duplicates=_share("--similarity", args.similarity) if args.dedup == "minhash" else None,
        contaminated=args.decontaminate_action,
        max_rejected=_share("--max-rejected", args.max_rejected),
        parts=args.parts,
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    defaults = PrepareSettings()
    top = command_parser(
        "prepare",
        "Documents to a Megatron dataset: PREFIX.bin, .idx, .manifest.json.",
        "megatron-cpt prepare medicine/*.jsonl.zst --tokenizer Llama-3-8B --output data/medicine --holdout 0.5%",
        "megatron-cpt prepare web/*.jsonl.zst --tokenizer Llama-3-8B --output data/web --limit 100 "
        "--where \"language == 'en' and metadata.score > 3\"",
        "megatron-cpt prepare corpus_text_document --tokenizer Llama-3-8B --output data/corpus --holdout 10%",
    )
    top.add_argument(
        "corpus",
        nargs="+",
        help="files, folders, globs: .jsonl, .csv, .txt (.gz, .zst, .bz2, .xz), .parquet, .arrow; prefixes of datasets,"
        " whose tokens stay as they are; - for stdin",
    )
    top.add_argument(
        "--tokenizer",
        required=True,
        metavar="PATH",
        help="Hugging Face folder, sentencepiece .model, tiktoken ranks, tekken.json",
    )
    top.add_argument("--output", required=True, metavar="PREFIX")
    top.add_argument(
        "--text-key",
        action="extend",
        nargs="+",
        metavar="KEY",
        help="key or column of the text (default text), nested ones too: text.content; several give a dataset each, "
        "PREFIX_KEY",
    )
    top.add_argument("--id-key", metavar="KEY", help="key or column of the document's id, kept in PREFIX.ids.jsonl")
    top.add_argument(
        "--where",
        metavar="CONDITION",
        help="only documents whose fields meet it: \"language == 'en' and metadata.score > 3\"; those without a field "
        "are rejected, unless it says `score is None or ...`",
    )
    top.add_argument(
        "--filter",
        action="extend",
        nargs="+",
        choices=[*FILTERS],
        default=[],
        metavar="NAME",
        help=f"leave out English texts by the rules of papers, as datatrove has them: {', '.join(FILTERS)}",
    )
    top.add_argument("--document-per-line", action="store_true", help="a line of .txt is a document, not the file")
    top.add_argument(
        "--chat",
        action="store_true",
        help="JSON lines are conversations (messages, conversations, instruction or prompt), written by the "
        "tokenizer's chat template",
    )
    top.add_argument(
        "--train-on",
        choices=["responses", "all"],
        help="what of conversations counts in the loss (default responses: what the assistant says)",
    )
    top.add_argument("--min-length", type=positive, metavar="TOKENS", help="shorter documents are left out")
    top.add_argument(
        "--max-length",
        type=positive,
        metavar="TOKENS",
        help="longer texts are cut into parts, at a paragraph if they can be; longer conversations are rejected",
    )
    top.add_argument(
        "--truncate", action="store_true", help="or, with --chat, cut behind the last answer with which they fit"
    )
    top.add_argument("--eod", metavar="TOKEN", help="token that closes each document (default: eos_token)")
    top.add_argument(
        "--bos", choices=["auto", "always", "never"], default=defaults.bos, help="auto: as the tokenizer does"
    )
    top.add_argument("--parse-special", action="store_true", help="control tokens in the text become such tokens")
    top.add_argument("--split-sentences", action="store_true", help="a sequence for each sentence, by nltk's Punkt")
    top.add_argument("--keep-newlines", action="store_true", help="blanks between sentences stay")
    top.add_argument("--lang", help="of the sentences (default english)")
    top.add_argument("--order", choices=["shuffled", "as_read"], default=defaults.order)
    top.add_argument("--seed", type=int, default=defaults.seed, help="of the shuffled order")
    top.add_argument("--holdout", default="0%", metavar="HOW_MUCH", help="to PREFIX.validation: 0.5%%, or tokens: 2M")
    top.add_argument("--keep-duplicates", action="store_true", help="exact copies of documents stay")
    top.add_argument(
        "--dedup-against",
        action="extend",
        nargs="+",
        default=[],
        metavar="PREFIX",
        help="leave out exact copies of the documents of these datasets, such as the replay corpus",
    )
    top.add_argument(
        "--dedup",
        choices=["exact", "minhash"],
        default="exact",
        help="minhash: leave near duplicates out too, held-out documents stay (needs rensa)",
    )
    top.add_argument(
        "--similarity",
        default="0.75",
        metavar="SHARE",
        help="share of common runs of 5 words that makes near duplicates (default 0.75)",
    )
    top.add_argument(
        "--decontaminate",
        action="extend",
        nargs="+",
        default=[],
        metavar="EVAL",
        help="task files (.jsonl) or prefixes of datasets: leave out documents with 13 consecutive words of them",
    )
    top.add_argument(
        "--decontaminate-action",
        choices=["remove", "count"],
        default=defaults.contaminated,
        help="count: only list and count such documents (default remove)",
    )
    top.add_argument("--max-rejected", default="1%", metavar="SHARE", help="documents that may be rejected")
    top.add_argument(
        "--parts",
        type=positive,
        default=defaults.parts,
        metavar="N",
        help="divide the order into N datasets, PREFIX-00001-of-N and so on, which PREFIX names together",
    )
    top.add_argument("--workers", type=positive, default=os.cpu_count(), help="processes (default: the cores)")
    top.add_argument(
        "--worker-timeout",
        type=positive,
        default=PATIENCE_SECONDS,
        metavar="SECONDS",
        help="give up a worker that has done nothing for so long (default: %(default)g)",
    )
    top.add_argument(
        "--shard", type=_shard, metavar="I/N", help="tokenize part I (from 1) of N; `megatron-cpt merge` joins them"
    )
    add_engine(top, "--workers of this one")
    top.add_argument(
        "--fast",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="gigatoken, where it is installed and proven to give the same ids",
    )
    top.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        help="dry run: show what becomes of the first N documents, write nothing; copies are not looked for",
    )
    top.add_argument("--overwrite", action="store_true", help="replace a finished dataset that was made otherwise")
    top.add_argument("--quiet", action="store_true", help="no progress bar")
    return top


def _shard(text: str) -> Shard:
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text}: write I/N with I from 1 to N, for example 3/16")
    return Shard(int(number), int(of))


def _holdout(text: str) -> tuple[float, int | None]:
    """A share, or 0 and a number of tokens: what is not a percentage and is 1 or more counts tokens."""
    try:
        tokens = 0 if text.endswith("%") else parse_count(text)
    except ValueError:
        tokens = 0
    if 1 <= tokens <= _MOST_PERCENT and text.isdecimal():
        rule = "may be meant as a percentage or as a number of tokens."
        raise BadInput(Fault(f"--holdout {text}", rule, f"Write {text}%, or the tokens that are to be held out: 2M."))
    return (0.0, tokens) if tokens >= 1 else (_share("--holdout", text), None)


def _share(name: str, text: str) -> float:
    """A share of 0 to 1 from `0.5%` or `0.005`."""
    try:
        return parse_share(text)
    except ValueError as error:
        raise BadInput(Fault(f"{name} {text}", "is not a share.", "Write a percentage such as 0.5%.")) from error


def summary(prepared: Prepared, output: Path) -> str:
    """What was done, in a few lines."""
    lines = [_line(output, [part.training for part in prepared.parts])]
    if prepared.validation is not None:
        held_out = [part.validation for part in prepared.parts if part.validation is not None]
        lines.append(_line(validation_prefix(output), held_out))
    lines += _not_said(prepared.training.unknown_share, prepared.training.lost_share)
    if prepared.training.not_read:
        lines.append(not_read_line(prepared.training.not_read))
    if prepared.training.rejected:
        lines.append(f"rejected {prepared.training.rejected:,} documents, see {rejected_path(output)}")
    lines += [
        f"left out {count:,} documents by {reason}" for reason, count in (prepared.training.filtered_by or {}).items()
    ]
    if prepared.training.cut:
        lines.append(f"cut {prepared.training.cut:,} documents into parts, to fit --max-length")
    if prepared.training.truncated:
        lines.append(f"cut {prepared.training.truncated:,} conversations behind an answer, to fit --max-length")
    if prepared.training.duplicates:
        lines.append(f"left out {prepared.training.duplicates:,} exact copies, see {duplicates_path(output)}")
    if prepared.training.near_duplicates:
        lines.append(
            f"left out {prepared.training.near_duplicates:,} near duplicates, see {near_duplicates_path(output)}"
        )
    lines += _overlap(prepared.training, output)
    if prepared.reused:
        lines.append("already complete: nothing was done")
    return "\n".join(lines)


_TOLD_SHARE = 0.001
"""Share of text that may be unknown or lost without a word."""


def _not_said(unknown: float | None, lost: float | None) -> list[str]:
    """What of the text the tokens do not hold."""
    lines = []
    if (unknown or 0) > _TOLD_SHARE:
        lines.append(f"warning: {unknown:.2%} of the tokens stand for text that the tokenizer cannot say")
    if (lost or 0) > _TOLD_SHARE:
        lines.append(f"warning: {lost:.2%} of the text, in bytes, does not come back from its tokens")
    return lines


def _overlap(manifest: Manifest, output: Path) -> list[str]:
    """What was found of evaluation sets."""
    found = None if manifest.contaminated is None else read_contamination(output, manifest)
    if found is None:
        return []
    lines = []
    for one in found.sets:
        left_out = f"{one.documents_left_out:,} documents left out" if one.documents_left_out else ""
        kept = f"{one.documents_kept:,} documents kept" if one.documents_kept else ""
        share = f"{one.items_left_out + one.items_kept:,} of {one.items:,} items"
        what = ", ".join(filter(None, (left_out, kept)))
        lines.append(f"overlap with {one.name}: " + (f"{share}, {what}" if what else "none"))
    if any(one.documents_left_out or one.documents_kept for one in found.sets):
        lines.append(f"the documents are listed in {contaminated_path(output)}")
    return lines


_SHOWN_CHARACTERS, _SHOWN_TOKENS, _SHOWN_REJECTED = 200, 24, 10
"""Of the text and of the tokens of a document, and of the rejected lines, that a dry run shows."""


def _shown(found: DryRun, settings: PrepareSettings) -> str:
    """What a dry run found, the documents that it shows last."""
    counts = found.counts
    lines = [f"dry run: {found.read:,} documents were read, nothing is written"]
    lines.append(_counted(found.documents, found.tokens, found.bytes, _ratio(counts), found.loss_tokens))
    lines += _not_said(
        counts.unknown / counts.tokens if counts.tokens else None, counts.lost / counts.bytes if counts.bytes else None
    )
    if settings.chooses:
        lines += [f"left out {count:,} documents by {reason}" for reason, count in sorted(found.filtered.items())]
    if counts.cut:
        lines.append(f"cut {counts.cut:,} documents into parts, to fit --max-length")
    if settings.id_key is not None and found.documents and not found.with_id:
        lines.append(f"warning: none of the documents has the key {settings.id_key!r} of --id-key")
    if found.rejected:
        lines.append(f"rejected {len(found.rejected):,} documents:")
        lines += [f"  {path}, line {line.line:,}: {line.reason}" for path, line in found.rejected[:_SHOWN_REJECTED]]
    if len(found.rejected) > _SHOWN_REJECTED:
        lines.append(f"  and {len(found.rejected) - _SHOWN_REJECTED:,} more")
    if len(found.rejected) > settings.max_rejected * (found.documents + len(found.rejected)):
        lines.append(f"warning: these are more than --max-rejected, {settings.max_rejected:.2%}, of the documents")
    for example in found.examples:
        ids = example.tokens[:_SHOWN_TOKENS].tolist()
        tokens = " ".join(f"{number}:{found.tokenizer.decode([number])!r}" for number in ids)
        lines += [
            f"\n--- {example.file}, line {example.line:,}: {len(example.text):,} characters, "
            f"{len(example.tokens):,} tokens",
            _beginning(example.text),
            f"tokens: {tokens}{' ...' if len(example.tokens) > _SHOWN_TOKENS else ''}",
        ]
        answers = [found.tokenizer.decode(example.tokens[begin:end].tolist()) for begin, end in example.spans]
        lines += [f"in the loss: {_beginning(answer)!r}" for answer in answers]
    # Documents, their reasons and names are foreign text: nothing in them may steer the terminal.
    return printable("\n".join(lines))


def _beginning(text: str) -> str:
    return text[:_SHOWN_CHARACTERS] + ("..." if len(text) > _SHOWN_CHARACTERS else "")


def _ratio(counts: TextCounts) -> float | None:
    """Tokens a word."""
    return counts.sampled_tokens / counts.sampled_words if counts.sampled_words else None


def _line(prefix: Path, manifests: Sequence[Manifest]) -> str:
    """Of a dataset, or of all or one of its parts."""
    first = manifests[0]
    shown = str(prefix)
    if first.part is not None:
        of = first.part.of
        shown += f", {of} parts" if len(manifests) == of else f", part {first.part.number} of {of}"
    loss_tokens = None if first.loss_tokens is None else sum(one.loss_tokens or 0 for one in manifests)
    return f"{shown}: " + _counted(
        sum(one.documents for one in manifests),
        sum(one.tokens for one in manifests),
        None if first.bytes is None else sum(one.bytes or 0 for one in manifests),
        first.tokens_per_word,
        loss_tokens,
    )


def _counted(
    documents: int, tokens: int, size: int | None, tokens_per_word: float | None, loss_tokens: int | None = None
) -> str:
    of_text = f", {size:,} bytes of text" if size is not None else ""
    ratios = []
    if size and tokens:
        ratios.append(f"{size / tokens:.2f} bytes a token")
    if tokens_per_word:
        ratios.append(f"{tokens_per_word:.2f} tokens a word")
    if loss_tokens is not None and tokens:
        ratios.append(f"{loss_tokens / tokens:.1%} of the tokens count in the loss")
    means = f" ({', '.join(ratios)})" if ratios else ""
    return f"{documents:,} documents, {tokens:,} tokens{of_text}{means}"
