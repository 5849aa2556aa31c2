"""Frozen parts, rates of their own, tokens that are no targets, and moments filled before the first update."""

from pathlib import Path

import pytest
import torch

from megatron_cpt.config.load import load_config
from megatron_cpt.model.build import unwrap
from megatron_cpt.parallel import groups
from megatron_cpt.planning.plan import make_plan
from megatron_cpt.runs.folder import RunFolder
from megatron_cpt.train import loop
from megatron_cpt.train.assemble import assemble
from megatron_cpt.train.journal import Journal
from megatron_cpt.train.optimizer import parts
from megatron_cpt.train.stop import StopRequest
from tests.ranks import Ranks
from tests.train.runs import LAYOUTS, column, records_of, train
from tests.workshop import Workshop


def moved(path: Path, overrides: tuple[str, ...]) -> dict[str, bool]:
    """Job: trains; which parameters of this rank changed, by name."""
    config = load_config(path, overrides)
    folder = RunFolder(config.run.folder)
    folder.create()
    run = assemble(config, make_plan(config, groups.world_size()), folder)
    before = {name: value.detach().clone() for name, value in unwrap(run.model)[0].named_parameters()}
    journal = Journal(run)
    loop.train(run, journal, StopRequest())
    journal.close()
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


def test_a_frozen_run_resumes_exactly(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    overrides = ("model.frozen.bottom=2", "optimizer.embedding_rate=0.1", "schedule.kind=constant", "schedule.final=0")
    one_rank.call(train, path=workshop.write_config(whole), overrides=overrides)
    path = workshop.write_config(pieces)
    one_rank.call(train, path=path, overrides=(*overrides, "training.tokens=4 steps", "validation.marks.end=false"))
    one_rank.call(train, path=path, overrides=overrides)
    assert records_of(pieces) == records_of(whole)


def test_the_embedding_has_a_rate_of_its_own(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    path = workshop.write_config(tmp_path / "run")
    [changed] = one_rank.call(moved, path=path, overrides=("optimizer.embedding_rate=0", "training.tokens=4 steps"))
    assert {name for name, value in changed.items() if not value} == {"embedding.word_embeddings.weight"}


def filled(path: Path, overrides: tuple[str, ...]) -> list[tuple[float, float]]:
    """Job: fills the moments; for each parameter, how far it moved, and its second moment."""
    config = load_config(path, overrides)
    folder = RunFolder(config.run.folder)
    folder.create()
    run = assemble(config, make_plan(config, groups.world_size()), folder)
    before = [parameter.detach().clone() for parameter in run.model[0].parameters()]
    journal = Journal(run)
    loop.fill_moments(run, journal)
    journal.close()
    [part] = parts(run.optimizer)
    moments = [float(state["exp_avg_sq"].max()) for state in part.optimizer.state.values()]
    steps = {float(state["step"]) for state in part.optimizer.state.values()}
    assert steps == {float(config.optimizer.fill_moments)}
    after = run.model[0].parameters()
    distances = [float((now - then).abs().max()) for now, then in zip(after, before, strict=True)]
    return list(zip(distances, moments, strict=True))


def test_filling_moments_moves_no_weight(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    path = workshop.write_config(tmp_path / "run")
    overrides = ("optimizer.fill_moments=3",)
    for distance, moment in one_rank.call(filled, path=path, overrides=overrides)[0]:
        assert distance == 0
        assert moment > 0
    one_rank.call(train, path=path, overrides=overrides)
    events = records_of(tmp_path / "run", "event")
    assert column(events, "event") == ["moments_filled"] * 3
    assert column(events, "step") == [0, 0, 0]
    assert events[0]["loss"] == records_of(tmp_path / "run", "train")[0]["loss"]  # the same sequences, the same weights


def test_tokens_that_are_no_targets_do_not_count(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    every, without = tmp_path / "every", tmp_path / "without"
    short = ("training.tokens=1 steps", "schedule.warmup=null", "validation.sets={}")
    one_rank.call(train, path=workshop.write_config(every), overrides=short)
    one_rank.call(train, path=workshop.write_config(without), overrides=(*short, "training.unscored_tokens=[0]"))
    [ours], [theirs] = records_of(without, "train"), records_of(every, "train")
    assert ours["source_tokens"] == theirs["source_tokens"]
    assert ours["loss"] != theirs["loss"]
