"""`megatron-cpt audit --data-path "0.7 A 0.3 B"`: what stock Megatron-LM will do with a blend."""

import argparse
from dataclasses import asdict

import orjson

from megatron_cpt.commands.parsers import command_parser
from megatron_cpt.config.units import parse_count
from megatron_cpt.planning.audit import QUARTERS, audit, audit_lines, read_blend, split_spans


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = command_parser(
        "audit",
        "Reads .idx files and shows what Megatron-LM does with a blend: epochs built, surplus, "
        "text unseen and repeated at each quarter of the run; and the same for the order of this package.",
        'megatron-cpt audit --data-path "0.7 data/medicine 0.3 data/general" --train-samples 120000 --seq-length 8192',
    )
    top.add_argument("--data-path", required=True, help="prefixes, with or without weights, as Megatron-LM has them")
    top.add_argument("--train-samples", required=True, type=_count, metavar="N", help="sequences of the run")
    top.add_argument("--seq-length", required=True, type=_count, metavar="S", help="tokens of a sequence")
    top.add_argument("--split", default="969,30,1", help="shares of documents (default 969,30,1, Megatron-LM's own)")
    top.add_argument("--json", action="store_true", help="print the figures as JSON")
    return top


def main(arguments: list[str]) -> int:
    """Prints the audit. Raises BadInput for a blend that stock Megatron-LM cannot take."""
    args = parser().parse_args(arguments)
    prefixes, weights = read_blend("--data-path", args.data_path.split())
    rows = audit(prefixes, weights, args.train_samples, args.seq_length, split_spans(args.split))
    if args.json:
        figures = [
            {name: value for name, value in asdict(row).items() if name != "lengths"}
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


def _count(text: str) -> int:
    try:
        return parse_count(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
