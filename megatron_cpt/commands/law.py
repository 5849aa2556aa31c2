"""`megatron-cpt law compare|fit|predict|choose|sweep`: laws of the loss along a learning-rate schedule."""

import argparse

from megatron_cpt.commands.law_actions import choose, compare, fit, predict, sweep
from megatron_cpt.commands.law_tables import NAMES
from megatron_cpt.commands.law_words import share
from megatron_cpt.scaling_law.candidates import LAWS
from megatron_cpt.scaling_law.critical import TOLERANCE

KINDS = ("constant", "linear", "cosine", "wsd")


def main(arguments: list[str]) -> int:
    """Runs one of the actions. Raises BadInput for curves that cannot be read or are too short for the law."""
    options = _parser().parse_args(arguments)
    return int(options.action(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="megatron-cpt law", description=__doc__)
    actions = parser.add_subparsers(required=True, metavar="compare|fit|predict|choose|sweep")
    _add_compare(actions.add_parser("compare", help="fit every pretraining law on some curves, score it on others"))
    _add_fit(actions.add_parser("fit", help="fit one law; of run folders the law of continual pretraining"))
    _add_predict(actions.add_parser("predict", help="the loss of other curves or of a schedule, from a fitted law"))
    _add_choose(actions.add_parser("choose", help="peak rate, replay ratio, steps and schedule, from a fitted law"))
    _add_sweep(actions.add_parser("sweep", help="write the pilot runs that a law is fitted to"))
    return parser


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--csv", nargs="+", required=True, metavar="FIT.csv", help="curves to fit: step,lr,loss")
    parser.add_argument("--predict", nargs="+", required=True, metavar="OTHER.csv", help="curves to predict")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    _add_reading(parser)
    parser.set_defaults(action=compare)


def _add_fit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("curves", nargs="+", metavar="RUN_OR_LOG", help="run folders, CSV files, TensorBoard folders")
    parser.add_argument(
        "--law",
        choices=[*sorted(LAWS), *NAMES],
        help="default: continual for run folders, else annealing; the last four are of final losses: of run folders, "
        "or of one CSV table (columns tokens, replay_ratio or share:SOURCE, model_size, loss:SET, start:SET)",
    )
    parser.add_argument("--set", action="append", dest="sets", help="validation set (default: all that the runs share)")
    parser.add_argument("--fix", action="append", default=[], metavar="NAME=VALUE", help="a parameter not to be fitted")
    parser.add_argument("--free", action="append", default=[], metavar="NAME", help="a parameter to fit, else held")
    parser.add_argument("--draws", type=int, default=40, metavar="N", help="refits of the bootstrap (default 40)")
    parser.add_argument(
        "--combine", action="append", default=[], metavar="SET=OLD,NEW", help="the loss on SET as a sum of two others"
    )
    parser.add_argument("--profile", action="store_true", help="profile intervals of weakly identified parameters")
    parser.add_argument(
        "--cross-validate", action="store_true", help="choose delta and prior by leaving out each curve in turn"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        metavar="NATS",
        help=f"critical-ratio: most that the loss may end above its start (default {TOLERANCE})",
    )
    parser.add_argument("--output", default="law.json", help="file to write (default law.json)")
    parser.add_argument("--html", default="law.html", help="page to write (default law.html)")
    _add_reading(parser)
    _add_overwrite(parser)
    parser.set_defaults(action=fit)


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("law", metavar="LAW.json", help="written by `megatron-cpt law fit`")
    parser.add_argument("curves", nargs="*", metavar="RUN_OR_LOG", help="measured curves, to be scored")
    parser.add_argument("--set", action="append", dest="sets", help="validation set (default: all of the law)")
    parser.add_argument("--schedule", choices=KINDS, help="instead of curves: the shape of the learning rate")
    parser.add_argument("--peak-lr", type=float, metavar="RATE")
    parser.add_argument("--steps", type=int, metavar="N")
    parser.add_argument("--replay", type=share, default=0.0, metavar="RATIO", help="replay ratio (default 0)")
    _add_sizes(parser)
    parser.add_argument("--output", metavar="FILE.csv", help="write curve,set,step,loss,predicted,low,high here")
    parser.add_argument("--html", metavar="FILE.html", help="write a page with the curves here")
    _add_reading(parser)
    _add_overwrite(parser)
    parser.set_defaults(action=predict)


def _add_choose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("law", metavar="LAW.json", help="written by `megatron-cpt law fit`, of all sets named here")
    parser.add_argument(
        "--minimise", nargs="+", required=True, metavar="SET[=WEIGHT]", help="weighted sum of final losses"
    )
    parser.add_argument(
        "--bound", nargs="*", default=[], metavar="SET=NATS", help="most that a set may rise above its start"
    )
    parser.add_argument("--replay", metavar="RATIOS", help="such as 0,0.01,0.05 (default: 41 over the fitted range)")
    parser.add_argument("--peak-lr", metavar="RATES", help="default: 9 over the fitted range")
    parser.add_argument("--steps", metavar="STEPS", help="default: that of the longest fitted curve")
    parser.add_argument("--schedule", default="cosine,wsd", metavar="KINDS", help="of " + ", ".join(KINDS))
    _add_sizes(parser)
    parser.add_argument(
        "--domain-tokens", metavar="COUNT", help="unique tokens of new text: repeated ones count as less"
    )
    parser.add_argument("--tokens-per-step", metavar="COUNT", help="of the fitted runs, for --domain-tokens")
    parser.add_argument("--show", type=int, default=5, metavar="N", help="recipes to print (default 5)")
    parser.add_argument("--output", default="choice.json", help="file to write (default choice.json)")
    parser.add_argument("--html", default="choice.html", help="page to write (default choice.html)")
    _add_overwrite(parser)
    parser.set_defaults(action=choose)


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="RUN.yaml", help="the run whose law is wanted")
    parser.add_argument("--replay", metavar="RATIOS", help="such as 0,0.01,0.05,0.2,0.5")
    parser.add_argument("--peak-lr", metavar="RATES", help="such as 1e-4,3e-4")
    parser.add_argument("--schedule", metavar="KINDS", help="such as cosine,constant,wsd: two tell the annealing")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of each arm (default 1)")
    parser.add_argument("--fit-steps", type=int, required=True, metavar="N", help="length of each run")
    parser.add_argument("--nproc", type=int, default=1, metavar="N", help="processes of one run (default 1)")
    parser.add_argument("--output", default="sweep", metavar="FOLDER", help="folder to write into (default sweep)")
    _add_overwrite(parser)
    parser.set_defaults(action=sweep)


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokens", metavar="COUNT", help="laws of tables: tokens trained, such as 5B")
    parser.add_argument("--model-size", metavar="COUNT", help="laws of tables: parameters without embeddings")


def _add_overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already")


def _add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--warmup", type=int, metavar="STEPS", help="of logs (default: up to the first row)")
    parser.add_argument("--from-step", type=int, default=1, metavar="STEP", help="leave earlier points out (default 1)")
    parser.add_argument("--loss-tag", default="loss", help="TensorBoard: tag of the loss (default loss)")
    parser.add_argument("--rate-tag", default="lr", help="TensorBoard: tag of the learning rate (default lr)")
