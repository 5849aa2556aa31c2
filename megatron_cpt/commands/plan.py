"""`megatron-cpt plan RUN.yaml`: what a run will do, before anything is paid for; --simulate: what a rank of it does.

A simulated rank is a process of its own, to which no GPU is shown: see megatron_cpt/simulation/.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import orjson
from pydantic import TypeAdapter

from megatron_cpt.commands.parsers import add_assume, assumed_tokens, command_parser, number_of
from megatron_cpt.config.checks import config_faults
from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.config.load import dump_config, load_config
from megatron_cpt.config.schema import ParallelSettings, RunConfig
from megatron_cpt.config.units import parse_share
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.memory import memory_per_rank, stage_memories
from megatron_cpt.families.shape import read_shape
from megatron_cpt.planning.cards import card_of
from megatron_cpt.planning.checks import model_faults
from megatron_cpt.planning.cost import cost_estimate, memory_warnings, price_faults
from megatron_cpt.planning.inputs import missing_data
from megatron_cpt.planning.layout_search import (
    Layout,
    TriedLayout,
    closed_step,
    distinct_layouts,
    ranked_layouts,
    search_layouts,
    search_lines,
)
from megatron_cpt.planning.plan import make_plan
from megatron_cpt.planning.resume_changes import resume_changes
from megatron_cpt.planning.simulated import SimulatedRank, Simulation, without_left_out
from megatron_cpt.planning.start_state import resume_state, start_state
from megatron_cpt.planning.text_tables import size
from megatron_cpt.runs.folder import ExitCode


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = command_parser(
        "plan",
        "Prints blend, steps, evaluations, size, cost and warnings of a run. Needs no GPU.",
        "megatron-cpt plan run.yaml --nproc 8",
        "megatron-cpt plan run.yaml run.folder=runs/trial schedule.peak_lr=2e-5 --json",
        "megatron-cpt plan run.yaml run.folder=runs/trial --nproc 8 --assume medicine=5B general=20B "
        "--gpu H100-80GB --mfu 40% --price 2.50",
        "megatron-cpt plan run.yaml --simulate --nproc 8 --gpu H100-80GB --price 2.5",
        "megatron-cpt plan run.yaml --search --nproc 64 --gpu H100-80GB",
    )
    top.add_argument("config", metavar="RUN.yaml", help="configuration of the run")
    top.add_argument("overrides", nargs="*", metavar="section.key=value", help="replaces a value of RUN.yaml")
    top.add_argument("--nproc", type=int, default=1, metavar="N", help="ranks of the run (default 1)")
    top.add_argument("--gpu", default="H100-80GB", metavar="CARD", help="kind of GPU (default H100-80GB), or YAML file")
    top.add_argument("--mfu", metavar="SHARE", help="of its peak that training reaches (default 40%%)")
    top.add_argument("--price", type=float, metavar="MONEY", help="of one GPU for an hour")
    add_assume(top, "sources that are not on this machine: medicine=5B; validation sets: medicine.validation=2M")
    top.add_argument("--json", action="store_true", help="print the content of the run folder's plan.json")
    simulated = top.add_argument_group("a simulated rank, in place of the plan: needs a config.json, and no data")
    what = simulated.add_mutually_exclusive_group()
    what.add_argument(
        "--simulate", action="store_true", help="memory, collectives and time of a rank: the program, dry, on fake GPUs"
    )
    what.add_argument(
        "--search",
        action="store_true",
        help="ranks all layouts (parallel.*, micro batch, recomputation) by estimates, simulates the first few and "
        "prints three to try",
    )
    which = simulated.add_mutually_exclusive_group()
    which.add_argument(
        "--rank", type=int, metavar="R", help="which (default: the first of the fullest stage and of the last)"
    )
    which.add_argument("--worst", action="store_true", help="simulate a first, a middle and a last stage")
    return top


def main(arguments: list[str]) -> int:
    """Prints the plan of a run. Raises BadInput with every fault of the run."""
    options = parser().parse_intermixed_args(arguments)
    refuse(_contradictions(options))
    config = load_config(options.config, options.overrides)
    if options.simulate:
        return _ending_as_ranks(_simulate, config, options)
    if options.search:
        return _ending_as_ranks(_search, config, options)
    assumed = assumed_tokens(options.assume)
    try:
        plan = make_plan(config, options.nproc, assumed)
    except BadInput as error:
        raise BadInput(*error.faults, *_to_assume(config, assumed)) from error
    plan = replace(plan, warnings=(*plan.warnings, *memory_warnings(plan, options.gpu)))
    cost = cost_estimate(plan, options.gpu, number_of("--mfu", options.mfu or "40%", parse_share), options.price)
    changed = resume_changes(plan).lines()
    if options.json:
        print(orjson.dumps(plan.to_dict() | {"cost": cost.to_dict()}, option=orjson.OPT_INDENT_2).decode())
        return 0
    parts = [plan.table(), "\n".join(["Time and cost", *(f"  {line}" for line in cost.lines())])]
    if changed:
        parts.append("\n".join(["Changes", *(f"  - {line}" for line in changed)]))
    print("\n\n".join(parts))
    return 0


def _to_assume(config: RunConfig, assumed: Mapping[str, int]) -> Iterator[Fault]:
    """How a run whose data are not on this machine is planned."""
    if missing := [name for name in missing_data(config) if name not in assumed]:
        words = " ".join(f"{name}=TOKENS" for name in missing)
        rule = "`plan` needs their size alone."
        yield Fault("where the data are on another machine", rule, f"Say it: --assume {words}.")


def _contradictions(options: argparse.Namespace) -> list[Fault]:
    """Options of one kind of plan that were given to another."""
    simulated = "--simulate" if options.simulate else "--search" if options.search else None
    which = "--worst" if options.worst else None if options.rank is None else f"--rank {options.rank}"
    faults = []
    if which and options.search:
        rule = "a search simulates the first rank of the fullest stage and of the last, of each layout."
        faults.append(Fault(which, rule, "Take it out, or simulate one layout with --simulate in place of --search."))
    elif which and not simulated:
        rule = "it says which rank is simulated, and none is."
        faults.append(Fault(which, rule, "Add --simulate, or take it out."))
    if simulated and options.mfu is not None:
        rule = f"{simulated} estimates the speed from what the ranks do, and takes no share."
        faults.append(Fault(f"--mfu {options.mfu}", rule, "Take it out; --gpu names a file with other shares."))
    if simulated and options.assume:
        shown = f"--assume {' '.join(options.assume)}"
        faults.append(Fault(shown, f"{simulated} reads no data, and plans none.", "Take it out."))
    return faults


def _ending_as_ranks(
    work: Callable[[RunConfig, argparse.Namespace], int], config: RunConfig, options: argparse.Namespace
) -> int:
    """The exit code of some work, or that of the simulated rank which ended it, whose message is printed."""
    try:
        return work(config, options)
    except subprocess.CalledProcessError as ended:
        told = ended.stderr.decode(errors="replace")
        passed = [f"megatron.{section}.{name}" for section, given in asdict(config.megatron).items() for name in given]
        if ended.returncode != ExitCode.BAD_INPUT and passed and told:
            # torch names the rank before each line.
            said = told.rstrip().rpartition("\n")[2].rpartition("]: ")[2].rstrip(".")
            rule = f"a simulated rank ended with {said}."
            raise BadInput(Fault(", ".join(passed), rule, "Mend it, or take out what needs a GPU.")) from ended
        print(told, file=sys.stderr, end="")
        return ended.returncode if ended.returncode == ExitCode.BAD_INPUT else ExitCode.OTHER


def _simulate(config: RunConfig, options: argparse.Namespace) -> int:
    """Simulates ranks, and prints what they show."""
    shape, world = read_shape(config.model.hf, config.model.rope), options.nproc
    card_of(options.gpu)
    refuse([*config_faults(config, world), *model_faults(config, shape), *price_faults(options.price)])
    stages = config.parallel.pipeline
    if options.rank is not None:
        if not 0 <= options.rank < world:
            raise BadInput(Fault(f"--rank {options.rank}", f"the ranks are 0 to {world - 1}.", "Name one of them."))
        ranks = [options.rank]
    elif options.worst:
        ranks = [stage * (world // stages) for stage in sorted({0, min(1, stages - 1), stages - 1})]
    else:
        ranks = _decisive_ranks(config, shape, world)
    simulation = _simulation(config, shape, ranks, options)
    if options.json:
        print(orjson.dumps(simulation.to_dict(), option=orjson.OPT_INDENT_2).decode())
    else:
        print(simulation.text())
    return 0


_SIMULATED_LAYOUTS = 5
"""Of a search."""


def _search(config: RunConfig, options: argparse.Namespace) -> int:
    """Ranks the layouts of a run, simulates the first few, and prints those to try."""
    shape, card, world = read_shape(config.model.hf, config.model.rope), card_of(options.gpu), options.nproc
    bare = replace(config, parallel=ParallelSettings(), training=replace(config.training, micro_batch_size=1))
    refuse(
        [*config_faults(bare, world if world < 1 else None), *model_faults(bare, shape), *price_faults(options.price)]
    )
    own = _own_layout(config, shape, options)
    layouts = search_layouts(config, shape, card, world)
    if not layouts:
        rule = f"no layout of the model fits {world} GPUs {options.gpu} by the estimate with this batch and length."
        remedy = "Give more GPUs or a larger one (--gpu), or a training.global_batch_size that they can share evenly."
        raise BadInput(Fault(f"--nproc {world}", rule, remedy))
    chosen = distinct_layouts(layouts, _SIMULATED_LAYOUTS)
    chosen += [own] if own is not None and own not in chosen else []
    tried = []
    for number, layout in enumerate(chosen, 1):
        print(f"simulating {number} of {len(chosen)}: {' '.join(layout.overrides)}", file=sys.stderr, flush=True)
        ranks = _decisive_ranks(layout.config, shape, world)
        tried.append(TriedLayout(layout, _simulation(layout.config, shape, ranks, options), layout == own))
    if options.json:
        content = {"gpu": options.gpu, "world_size": world, "layouts_that_fit": len(layouts)}
        content["simulated"] = [one.to_dict() for one in ranked_layouts(tried)]
        print(orjson.dumps(content, option=orjson.OPT_INDENT_2).decode())
    else:
        print("\n".join(search_lines(len(layouts), tried)))
    return 0


def _own_layout(config: RunConfig, shape: ModelShape, options: argparse.Namespace) -> Layout | None:
    """The layout of RUN.yaml; None where it is none for so many ranks, or does not fit the card by the estimate.

    Raises BadInput where it is none and overrides are part of it.
    """
    world, card, why = options.nproc, card_of(options.gpu), None
    faults = [*config_faults(config, world), *model_faults(config, shape)]
    if any(word.startswith(_LAYOUT_WORDS) for word in options.overrides):
        refuse(faults)
    if faults:
        why = str(faults[0])
    elif (memory := memory_per_rank(shape, config, world)).total > card.usable_memory:
        why = f"{size(memory.total)} are estimated for a rank, more than fits {options.gpu}."
    if why is not None:
        print(f"the layout of {options.config} is not simulated: {why}", file=sys.stderr, flush=True)
        return None
    return Layout(config, memory, closed_step(config, shape, card, world))


_LAYOUT_WORDS = ("parallel.", "training.micro_batch_size=", "training.recompute=")


def _decisive_ranks(config: RunConfig, shape: ModelShape, world: int) -> list[int]:
    """The first rank of the stage with the most memory by the estimate, and of the last, whose output layer takes time.

    One where they are the same.
    """
    totals, stages = [memory.total for memory in stage_memories(shape, config, world)], config.parallel.pipeline
    return [stage * (world // stages) for stage in sorted({totals.index(max(totals)), stages - 1})]


def _simulation(config: RunConfig, shape: ModelShape, ranks: Sequence[int], options: argparse.Namespace) -> Simulation:
    """Simulates ranks of a run, at once. Raises CalledProcessError where one of them ends with a fault."""
    simulated, left_out = without_left_out(config)
    with ThreadPoolExecutor() as threads:
        found = tuple(threads.map(lambda rank: _simulated_rank(simulated, rank, options.nproc, options.gpu), ranks))
    position = resume_state(config) or start_state(config)
    return Simulation(config, shape, card_of(options.gpu), options.gpu, found, options.price, left_out, position.step)


def _simulated_rank(config: RunConfig, rank: int, world: int, gpu: str) -> SimulatedRank:
    """What a rank shows, in a process of its own. Raises CalledProcessError where that ends with a fault."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_text(dump_config(config))
        command = _simulation_command([str(path), str(rank), str(world), gpu])
        ended = subprocess.run(command, env=_without_gpu(), capture_output=True, check=True)
    return TypeAdapter(SimulatedRank).validate_json(ended.stdout)


def _simulation_command(words: Sequence[str]) -> list[str]:
    """The command of a process that simulates a rank."""
    return [sys.executable, "-W", "ignore", "-m", "megatron_cpt.simulation", *words]


def _without_gpu() -> dict[str, str]:
    """The environment of a process that sees no GPU."""
    return dict(os.environ) | {"CUDA_VISIBLE_DEVICES": "", "TORCHDYNAMO_DISABLE": "1"}
