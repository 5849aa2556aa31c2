"""Frozen parts, rates of their own, tokens that are no targets, and moments filled before the first update."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_cpt.checkpoint.distributed_optimizer import chained_optimizers
from megatron_cpt.config.load import load_config
from megatron_cpt.corpus.stream import TokenStream
from megatron_cpt.model.build import unwrap
from megatron_cpt.parallel import groups
from megatron_cpt.planning.plan import make_plan
from megatron_cpt.runs.folder import RunFolder
from megatron_cpt.train import loop
from megatron_cpt.train.logger import RunLogger
from megatron_cpt.train.run import assemble
from megatron_cpt.train.stop import StopRequest
from megatron_cpt.train.watchdog import Watchdog
from tests.params import quick_among
from tests.ranks import Ranks
from tests.train.runs import LAYOUTS, column, records_of, refusal, train
from tests.workshop import VOCABULARY, Workshop


def moved(path: Path, overrides: tuple[str, ...]) -> dict[str, bool]:
    """Job: trains; which parameters of this rank changed, by name."""
    config = load_config(path, overrides)
    folder = RunFolder(config.run.folder)
    folder.create()
    run = assemble(config, make_plan(config, groups.world_size()), folder)
    before = {name: value.detach().clone() for name, value in unwrap(run.model)[0].named_parameters()}
    logger = RunLogger(run)
    request = StopRequest()
    loop.train(run, logger, request, Watchdog(config.timeout, run.folder, request))
    logger.close()
    return {name: not torch.equal(value, before[name]) for name, value in unwrap(run.model)[0].named_parameters()}


@pytest.mark.parametrize("layout", ["pipeline 2", "data 2, distributed optimizer"])
def test_frozen_parts_keep_their_weights_and_the_others_move(
    two_ranks: Ranks, workshop: Workshop, tmp_path: Path, layout: str
) -> None:
    frozen = ["model.frozen.bottom=1", "model.frozen.top=1"]
    if layout != "pipeline 2":
        frozen.append("model.frozen.embeddings=true")
    path = workshop.write_config(tmp_path / "run")
    overrides = (*frozen, "training.tokens=4 steps", *LAYOUTS[layout])
    changed = {}
    for rank, result in enumerate(two_ranks.call(moved, path=path, overrides=overrides)):
        offset = 2 * rank if layout == "pipeline 2" else 0  # layers are counted from 0 on each stage
        for name, value in result.items():
            layer = int(name.split(".")[2]) + offset if ".layers." in name else None
            changed[layer, name] = value
    for (layer, name), value in changed.items():
        is_frozen = layer in (0, 3) or ("embedding" in name and layout != "pipeline 2")
        assert value != is_frozen, (layer, name)


@pytest.mark.ci
def test_a_frozen_run_resumes_exactly(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    overrides = (
        "model.frozen.bottom=2",
        "optimizer.lr_multipliers.embedding=0.1",
        "schedule.kind=constant",
        "schedule.final_lr=0",
    )
    one_rank.call(train, path=workshop.write_config(whole), overrides=overrides)
    path = workshop.write_config(pieces)
    one_rank.call(
        train, path=path, overrides=(*overrides, "training.tokens=4 steps", "validation.eval_interval.end=false")
    )
    one_rank.call(train, path=path, overrides=overrides)
    assert records_of(pieces) == records_of(whole)


def weights_after(path: Path, overrides: tuple[str, ...]) -> dict[str, tuple[float, torch.Tensor]]:
    """Job: trains; each parameter of this rank, layers counted over all stages: how far its weights went, and they."""
    config = load_config(path, overrides)
    folder = RunFolder(config.run.folder)
    folder.create()
    run = assemble(config, make_plan(config, groups.world_size()), folder)
    [model] = unwrap(run.model)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    logger = RunLogger(run)
    request = StopRequest()
    loop.train(run, logger, request, Watchdog(config.timeout, run.folder, request))
    logger.close()
    first = model.decoder.layers[0].layer_number - 1
    return {
        re.sub(r"layers\.(\d+)", lambda found: f"layers.{first + int(found[1])}", name): (
            float((value.detach() - before[name]).abs().max()),
            value.detach().clone(),
        )
        for name, value in model.named_parameters()
    }


ONE_STEP = ("training.tokens=1 steps", "schedule.warmup=null", "schedule.kind=constant", "schedule.peak_lr=0.001")
RATES = (
    *ONE_STEP,
    "optimizer.weight_decay=0",
    "optimizer.lr_multipliers={embedding: 0.25, norms_and_biases: 0.5, layers: [{first: 1, last: 2, multiplier: 0.1}]}",
)


@pytest.mark.parametrize(
    "layout",
    quick_among(["one process", "pipeline 2", "data 2, distributed optimizer"], ["data 2, distributed optimizer"]),
)
def test_parts_have_rates_of_their_own(
    one_rank: Ranks, two_ranks: Ranks, workshop: Workshop, tmp_path: Path, layout: str
) -> None:
    """AdamW's first update moves a weight by the rate, whatever its gradient."""
    path = workshop.write_config(tmp_path / "run")
    pool, settings = (one_rank, ()) if layout == "one process" else (two_ranks, LAYOUTS[layout])
    for result in pool.call(weights_after, path=path, overrides=(*RATES, *settings)):
        for name, (distance, value) in result.items():
            layer = re.search(r"layers\.(\d+)", name)
            factor = 0.1 if layer and layer[1] in "12" else 1.0
            factor *= 0.5 if value.dim() == 1 else 1.0
            factor *= 0.25 if name.startswith(("embedding", "output_layer")) else 1.0
            assert distance == pytest.approx(0.001 * factor, rel=2e-3), name


def test_parts_are_left_out_of_weight_decay(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    path, results = workshop.write_config(tmp_path / "run"), []
    for decay in (0, 0.5):
        folder = f"run.folder={tmp_path / str(decay)}"
        overrides = (*ONE_STEP, "optimizer.no_weight_decay=[embedding]", f"optimizer.weight_decay={decay}", folder)
        results += one_rank.call(weights_after, path=path, overrides=overrides)
    without, decayed = results
    for name, (_, value) in without.items():
        assert torch.equal(value, decayed[name][1]) == name.startswith("embedding"), name


def test_a_resume_that_would_train_other_parts_is_refused(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    path = workshop.write_config(tmp_path / "run")
    one_rank.call(train, path=path, overrides=("training.tokens=4 steps", "model.frozen.bottom=1"))
    for override, named in (
        ("model.frozen.bottom=2", "'bottom': 1, 'top': 0, 'embeddings': False} before, {'bottom': 2"),
        ("optimizer.lr_multipliers.embedding=0.5", "optimizer.lr_multipliers: {'embedding': 1.0"),
        ("optimizer.no_weight_decay=[]", "optimizer.no_weight_decay: ['norms_and_biases'] before, [] now"),
    ):
        [said] = one_rank.call(refusal, path=path, overrides=("model.frozen.bottom=1", override))
        assert named in said
        assert "load_schedule: true, load_data_position: true}`" in said


def filled(path: Path, overrides: tuple[str, ...]) -> list[tuple[float, float]]:
    """Job: fills the moments; for each parameter, how far it moved, and its second moment."""
    config = load_config(path, overrides)
    folder = RunFolder(config.run.folder)
    folder.create()
    run = assemble(config, make_plan(config, groups.world_size()), folder)
    before = [parameter.detach().clone() for parameter in run.model[0].parameters()]
    logger = RunLogger(run)
    loop.warm_up_moments(run, logger, Watchdog(config.timeout, run.folder, StopRequest()))
    logger.close()
    [part] = chained_optimizers(run.optimizer)
    moments = [float(state["exp_avg_sq"].max()) for state in part.optimizer.state.values()]
    steps = {float(state["step"]) for state in part.optimizer.state.values()}
    assert steps == {float(config.optimizer.moment_warmup_steps)}
    after = run.model[0].parameters()
    distances = [float((now - then).abs().max()) for now, then in zip(after, before, strict=True)]
    return list(zip(distances, moments, strict=True))


@pytest.mark.ci
def test_filling_moments_moves_no_weight(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    path = workshop.write_config(tmp_path / "run")
    overrides = ("optimizer.moment_warmup_steps=3",)
    for distance, moment in one_rank.call(filled, path=path, overrides=overrides)[0]:
        assert distance == 0
        assert moment > 0
    one_rank.call(train, path=path, overrides=overrides)
    events = records_of(tmp_path / "run", "event")
    assert column(events, "event") == ["moments_filled"] * 3
    assert column(events, "step") == [0, 0, 0]
    assert events[0]["loss"] == records_of(tmp_path / "run", "train")[0]["loss"]  # the same sequences, the same weights


@pytest.mark.ci
@pytest.mark.parametrize("left_out", quick_among(["eod", "first", "ids"], ["ids"]))
def test_labels_that_are_left_out_count_nowhere(
    one_rank: Ranks, two_ranks: Ranks, workshop: Workshop, tmp_path: Path, left_out: str
) -> None:
    """The counts are exact by source; two replicas have the losses of one; sets are other sets."""
    every, one, two = (tmp_path / name for name in ("every", "one", "two"))
    frequent = np.bincount(TokenStream([workshop.prefix("domain")]).read(0, 4096)).argsort()[-2:].tolist()
    setting = {
        "eod": "data.loss_mask.eod=false",
        "first": "data.loss_mask.document_starts=false",
        "ids": f"data.loss_mask.ignored_token_ids={frequent}",
    }[left_out]
    short = ("training.tokens=2 steps", "schedule.warmup=null")
    one_rank.call(train, path=workshop.write_config(every), overrides=short)
    one_rank.call(train, path=workshop.write_config(one), overrides=(*short, setting))
    two_ranks.call(train, path=workshop.write_config(two), overrides=(*short, setting))
    plan = make_plan(load_config(workshop.write_config(one), (*short, setting)), 1)
    for step, record in enumerate(records_of(one, "train")):
        place = plan.blend.order.locate(np.arange(8 * step, 8 * step + 8))
        expected = dict.fromkeys(plan.blend.sources, 0)
        for source, sequence in zip(place.source.tolist(), place.sequence.tolist(), strict=True):
            name = plan.blend.sources[source]
            window = plan.inputs.sources[name].read(sequence * 32, 33)
            dropped = {"eod": [0], "ids": frequent}.get(left_out)
            # A document begins after each EOD, id 0.
            labels = window[1:] if dropped else window[:-1]
            expected[name] += 32 - int(np.isin(labels, dropped or [0]).sum())
        assert record["source_scored_tokens"] == expected
    for kind in ("train", "validation"):
        ours, theirs = records_of(two, kind), records_of(one, kind)
        assert column(ours, "loss") == pytest.approx(column(theirs, "loss"), abs=2e-6)
        assert column(theirs, "loss") != column(records_of(every, kind), "loss")
    sets = [{record["identity"] for record in records_of(run, "validation")} for run in (every, one, two)]
    assert sets[1] == sets[2]
    assert not sets[0] & sets[1]


def test_a_step_of_which_nothing_counts_has_no_loss_and_no_gradient(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path
) -> None:
    everything = f"data.loss_mask.ignored_token_ids={list(range(VOCABULARY))}"
    path = workshop.write_config(tmp_path / "run", validation={"sets": {}})
    overrides = (*ONE_STEP, everything, "optimizer.weight_decay=0")
    [changed] = one_rank.call(moved, path=path, overrides=overrides)
    assert not any(changed.values())
    [record] = records_of(tmp_path / "run", "train")
    assert (record["loss"], record["grad_norm"]) == (None, 0.0)
    assert set(record["source_scored_tokens"].values()) == {0}
