"""`megatron-cpt select PREFIX_OR_SELECTION... --tokens 5B --keep random --output NAME`"""

import argparse

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.config.units import parse_count
from megatron_cpt.corpus.select import Chosen, select


def main(arguments: list[str]) -> int:
    words = _parser().parse_args(arguments)
    try:
        tokens = parse_count(words.tokens)
    except ValueError as error:
        raise BadInput(Fault("--tokens", f"{error}.", "For example: --tokens 300K.")) from error
    chosen = select(words.datasets, words.output, tokens=tokens, keep=words.keep, by=words.by, seed=words.seed)
    print(_told(chosen))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="megatron-cpt select", description="Choose documents of datasets, without copying their tokens."
    )
    parser.add_argument("datasets", nargs="+", metavar="PREFIX_OR_SELECTION", help="or globs of either")
    parser.add_argument("--tokens", required=True, help="budget, for example 300K or 5B")
    parser.add_argument("--keep", choices=["random", "lowest", "highest"], required=True)
    parser.add_argument("--by", metavar="NAME", help="score to choose by: PREFIX.NAME.npy beside each dataset")
    parser.add_argument("--seed", type=int, default=1234, help="of random choice and of ties")
    parser.add_argument("--output", required=True, metavar="NAME", help="writes NAME.selection.json and .npy")
    return parser


def _told(chosen: Chosen) -> str:
    selection, how = chosen.selection, chosen.selection.how
    documents = sum(len(part.documents) for part in selection.datasets)
    lines = [
        f"{selection.path}: {documents:,} of {chosen.available_documents:,} documents, "
        f"{selection.tokens:,} of {chosen.available_tokens:,} tokens"
    ]
    if how["by"]:
        lines.append(f"{how['by']} from {how['lowest_score']:.6g} to {how['highest_score']:.6g}")
    for part in selection.datasets:
        lines.append(f"  {part.prefix}: {len(part.documents):,} documents, {part.tokens:,} tokens")
    return "\n".join(lines)
