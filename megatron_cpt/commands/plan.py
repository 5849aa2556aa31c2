"""`megatron-cpt plan RUN.yaml`: what a run will do, before anything is paid for."""

import argparse

import orjson

from megatron_cpt.commands.parsers import command_parser
from megatron_cpt.config.load import load_config
from megatron_cpt.planning.plan import make_plan
from megatron_cpt.planning.resume_changes import resume_changes


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = command_parser(
        "plan",
        "Prints blend, steps, evaluations, size, cost and warnings of a run. Needs no GPU.",
        "megatron-cpt plan run.yaml --nproc 8",
        "megatron-cpt plan run.yaml run.folder=runs/trial schedule.peak_lr=2e-5 --json",
    )
    top.add_argument("config", metavar="RUN.yaml", help="configuration of the run")
    top.add_argument("overrides", nargs="*", metavar="section.key=value", help="replaces a value of RUN.yaml")
    top.add_argument("--nproc", type=int, default=1, metavar="N", help="ranks of the run (default 1)")
    top.add_argument("--json", action="store_true", help="print the content of the run folder's plan.json")
    return top


def main(arguments: list[str]) -> int:
    """Prints the plan of a run. Raises BadInput with every fault of the run."""
    options = parser().parse_intermixed_args(arguments)
    plan = make_plan(load_config(options.config, options.overrides), options.nproc)
    changed = resume_changes(plan.config).lines()
    print(orjson.dumps(plan.to_dict(), option=orjson.OPT_INDENT_2).decode() if options.json else plan.table())
    if changed and not options.json:
        print("\n".join(["", "Changes", *(f"  - {line}" for line in changed)]))
    return 0
