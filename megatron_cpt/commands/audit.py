"""`megatron-cpt audit --data-path "0.7 A 0.3 B"`: what stock Megatron-LM will do with a blend."""

import argparse
from dataclasses import asdict

import orjson

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.config.units import parse_count
from megatron_cpt.planning.audit import QUARTERS, audit, audit_lines


def main(arguments: list[str]) -> int:
    """Prints the audit. Raises BadInput for a blend that stock Megatron-LM cannot take."""
    parser = argparse.ArgumentParser(
        prog="megatron-cpt audit",
        description="Reads .idx files and shows what Megatron-LM does with a blend: epochs built, surplus, "
        "documents unseen and repeated at each quarter of the run; and the same for the order of this package.",
    )
    parser.add_argument("--data-path", required=True, help="weights and prefixes, as Megatron-LM takes them")
    parser.add_argument("--train-samples", required=True, type=_count, metavar="N", help="sequences of the run")
    parser.add_argument("--seq-length", required=True, type=_count, metavar="S", help="tokens of a sequence")
    parser.add_argument("--split", default="969,30,1", help="shares of documents (default 969,30,1, Megatron-LM's own)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args(arguments)
    prefixes, weights = _read_blend(args.data_path)
    rows = audit(prefixes, weights, args.train_samples, args.seq_length, _training_span(args.split))
    if args.json:
        figures = [
            asdict(row)
            | {"passes": row.passes, "epochs_by_surplus": row.epochs_by_surplus}
            | {
                name: [figure(share) for share in QUARTERS]
                for name, figure in (
                    ("unseen", row.unseen),
                    ("repeated", row.repeated),
                    ("ours_unseen", row.ours_unseen),
                )
            }
            for row in rows
        ]
        print(orjson.dumps(figures, option=orjson.OPT_INDENT_2).decode())
    else:
        print("\n".join(audit_lines(rows)))
    return 0


def _read_blend(text: str) -> tuple[list[str], list[float]]:
    """Prefixes and weights of a --data-path; a single prefix has weight 1. Raises BadInput where it is no blend."""
    words = text.split()
    if len(words) == 1:
        return words, [1.0]
    try:
        weights = [float(word) for word in words[::2]]
    except ValueError:
        weights = []
    if not weights or len(words) % 2:
        rule = "a blend is `WEIGHT PREFIX WEIGHT PREFIX ...`."
        raise BadInput(Fault(f"--data-path {text}", rule, "Give each prefix a weight."))
    return words[1::2], weights


def _training_span(split: str) -> tuple[float, float]:
    """The span of documents that the first number of a --split gives to training. Raises BadInput."""
    try:
        shares = [float(word) for word in split.replace("/", ",").split(",")]
    except ValueError:
        shares = []
    if not shares or min(shares) < 0 or shares[0] == 0:
        rule = "it should be numbers that are not negative, the first above 0."
        raise BadInput(Fault(f"--split {split}", rule, "Write, for example, 969,30,1."))
    return 0.0, shares[0] / sum(shares)


def _count(text: str) -> int:
    try:
        return parse_count(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
