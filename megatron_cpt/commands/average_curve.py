"""The part of `megatron-cpt average` that writes no model: `--curve RUN.yaml`, losses between a base and a model.

The validation sets, the precision and the layout are those of the run.
"""

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from megatron_cpt.checkpoint.average import check_pair
from megatron_cpt.checkpoint.convert import differing_fields, load_into
from megatron_cpt.commands.ranks import in_ranks, is_rank
from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.config.load import load_config
from megatron_cpt.evaluate.interpolation import losses_between
from megatron_cpt.families.family import ModelShape
from megatron_cpt.model.build import ModelOptions, build_model
from megatron_cpt.parallel import groups
from megatron_cpt.planning.plan import RunPlan, make_plan
from megatron_cpt.report.interpolation_page import SetCurve, curve_csv, curve_page
from megatron_cpt.runs.folder import refuse_existing, whole_folder, write_durably
from megatron_cpt.train.run import open_validation_sets


def draw_curve(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Measures the curve, under torchrun where --nproc is more than 1, and writes curve.csv and curve.html.

    Bad input is found before any process starts.
    """
    refuse([*_faults(args)])
    refuse_existing(args.output)
    shape = check_pair(args.sources)
    run, *overrides = args.curve
    plan = make_plan(load_config(run, overrides), int(os.environ.get("WORLD_SIZE", args.nproc)))
    _check_run(run, plan, shape)
    if args.nproc > 1 and not is_rank():
        # One checkpoint for all ranks: a run that goes on may save another.
        named = dict(zip(map(str, args.named), map(str, args.sources), strict=True))
        return in_ranks("average", [named.get(word, word) for word in arguments], args.nproc)
    groups.init_process_group()
    try:
        curves = _measure(args.sources, plan, shape)
        if groups.rank() == 0:
            with whole_folder(args.output) as folder:
                write_durably(folder / "curve.csv", curve_csv(curves))
                write_durably(folder / "curve.html", curve_page(curves, *map(str, args.sources)))
            print(f"curve: {args.output / 'curve.html'}")
            print("\n".join(map(str, curves)))
    finally:
        groups.destroy()
    return 0


def _faults(args: argparse.Namespace) -> list[Fault]:
    """Settings of a model that is written, where none is."""
    given = {"--weights": args.weights, "--base": args.base, "--density": args.density, "--scale": args.scale}
    names = [name for name, value in given.items() if value is not None]
    names += ["--method"] if args.method != "linear" else []
    rule = "says how a model is made, and --curve makes none: it is of all linear means of two."
    remedy = "Leave it out; or write that model first, and name it and its base here."
    return [Fault(name, rule, remedy) for name in names]


def _check_run(run: str, plan: RunPlan, shape: ModelShape) -> None:
    """Raises BadInput where the run has no validation sets, or another model than the two."""
    if not plan.config.validation.sets:
        raise BadInput(Fault(f"--curve {run}", "has no validation.sets.", "Name a run that has some."))
    assert plan.inputs.shape is not None, "inputs without faults are whole"
    if other := differing_fields(plan.inputs.shape, shape):
        rule = f"is of another model than the sources: {other}."
        raise BadInput(Fault(f"--curve {run}", rule, "Name a run of the models' shape."))


def _measure(sources: Sequence[Path], plan: RunPlan, shape: ModelShape) -> list[SetCurve]:
    """The curve of each validation set. Every rank calls it and gets the same.

    Args:
        sources: the model, and its base.
    """
    config = plan.config
    groups.init_model_parallel(config.parallel)
    model = build_model(shape, ModelOptions.of_run(config))
    load_end, load_start = (partial(load_into, model, shape, source) for source in sources)
    sets = open_validation_sets(config, plan.inputs)
    micro_batch_size = config.validation.micro_batch_size or config.training.micro_batch_size
    shares, losses = zip(*losses_between(model, load_start, load_end, sets, micro_batch_size), strict=True)
    return [
        SetCurve(
            name=one.name,
            role=one.role,
            shares=shares,
            losses=tuple(loss.loss for loss in of_set),
            bits_per_byte=tuple(loss.bits_per_byte for loss in of_set),
        )
        for one, of_set in zip(sets, zip(*losses, strict=True), strict=True)
    ]
