"""`megatron-cpt select PREFIX_OR_SELECTION... --tokens 5B --by ngram --keep lowest --output NAME`"""

import argparse

from megatron_cpt.commands.parsers import command_parser
from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.config.units import parse_count, parse_share
from megatron_cpt.corpus.stream import preview, tokenizer_of
from megatron_cpt.quality.select import KEEPS, Chosen, HowMany, select

_SHOWN_TOKENS = 80
"""Of each example."""


def main(arguments: list[str]) -> int:
    args = parser().parse_args(arguments)
    how_many = _how_many(args)
    if how_many.given() and args.keep is None:
        rule = "needs to know which documents to take first."
        raise BadInput(Fault(f"--{next(iter(how_many.given()))}", rule, f"Give --keep {' or '.join(KEEPS)}."))
    chosen = select(
        args.datasets,
        args.output,
        how_many,
        keep=args.keep or "random",
        by=args.by,
        seed=args.seed,
        temperature=args.temperature,
        overwrite=args.overwrite,
        where=args.where,
        diverse=args.diverse,
        embeddings=args.embeddings,
    )
    print(_summary(chosen))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = command_parser(
        "select",
        "Choose documents of datasets, without copying their tokens.",
        "megatron-cpt select data/medicine --share 20% --by ngram --keep lowest --output data/medicine-best",
        'megatron-cpt select data/medicine --where "ngram < 10000 and tokens >= 8" --output data/medicine-some',
    )
    top.add_argument("datasets", nargs="+", metavar="PREFIX_OR_SELECTION", help="or globs of either")
    top.add_argument(
        "--where",
        metavar="CONDITION",
        help='choose among documents that meet it: "quality > 3 and tokens >= 64", of scores and of tokens, the length',
    )
    how_many = top.add_mutually_exclusive_group()
    how_many.add_argument("--tokens", help="budget, for example 300K or 5B")
    how_many.add_argument("--share", help="of all tokens, for example 20%%")
    how_many.add_argument("--documents", help="number of documents, for example 10K")
    how_many.add_argument("--threshold", type=float, help="score at most this (lowest) or at least this (highest)")
    top.add_argument(
        "--keep",
        choices=KEEPS,
        help="an end of the score, its middle, or a random sample; needed with a budget",
    )
    top.add_argument(
        "--by",
        metavar="NAME",
        help="score to choose by: PREFIX.NAME.npy beside each dataset; several are multiplied: 'quality*complexity'",
    )
    top.add_argument(
        "--diverse",
        type=float,
        metavar="COSINE",
        help="pass over documents that are more similar than this to one taken before, such as 0.9",
    )
    top.add_argument(
        "--embeddings", metavar="NAME", help="for --diverse: PREFIX.NAME.npy beside each dataset, a row a document"
    )
    top.add_argument("--seed", type=int, default=1234, help="of random and gumbel, and of ties")
    top.add_argument("--temperature", type=float, help="gumbel: draw by exp(score / temperature) (default: 1)")
    top.add_argument("--output", required=True, metavar="NAME", help="writes NAME.selection.json and .npy")
    top.add_argument("--overwrite", action="store_true", help="replace another selection of this name")
    return top


def _how_many(args: argparse.Namespace) -> HowMany:
    try:
        return HowMany(
            tokens=None if args.tokens is None else parse_count(args.tokens),
            share=None if args.share is None else parse_share(args.share),
            documents=None if args.documents is None else parse_count(args.documents),
            threshold=args.threshold,
        )
    except ValueError as error:
        raise BadInput(Fault("the budget", f"{error}.", "For example: --tokens 300K, or --share 20%.")) from error


def _summary(chosen: Chosen) -> str:
    selection, how = chosen.selection, chosen.selection.how
    documents = sum(len(part.documents) for part in selection.datasets)
    lines = [
        f"{selection.path}: {documents:,} of {chosen.available_documents:,} documents, "
        f"{selection.tokens:,} of {chosen.available_tokens:,} tokens"
    ]
    if "where" in how:
        lines.append(f"left out {how['filtered']:,} documents that do not meet --where")
    if "diverse" in how:
        lines.append(f"passed over {how['too_similar']:,} documents with a cosine above {how['diverse']:g}")
    if how["by"]:
        lines.append(f"{how['by']} from {how['lowest_score']:.9g} to {how['highest_score']:.9g}")
    for part in selection.datasets:
        lines.append(f"  {part.prefix}: {len(part.documents):,} documents, {part.tokens:,} tokens")
    for example in chosen.examples:
        score = "" if example.score is None else f", {how['by']} {example.score:.6g}"
        tokenizer = tokenizer_of(example.dataset.manifest)
        text = preview(example.dataset.dataset.document(example.document), tokenizer, _SHOWN_TOKENS)
        lines.append(f"\n--- {example.dataset.prefix}, document {example.document:,}{score}\n{text}")
    return "\n".join(lines)
