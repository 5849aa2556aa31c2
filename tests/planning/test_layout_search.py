"""Layouts that `plan --search` ranks: all that rules and memory allow, the fastest by the closed estimate first."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_cpt.config.checks import config_faults
from megatron_cpt.config.load import config_from_dict, dump_config, load_config
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.memory import memory_per_rank
from megatron_cpt.families.shape import read_shape
from megatron_cpt.planning.cards import CARDS, Card
from megatron_cpt.planning.checks import model_faults
from megatron_cpt.planning.layout_search import (
    Layout,
    TriedLayout,
    closed_rank,
    closed_step,
    distinct_layouts,
    ranked_layouts,
    search_layouts,
    search_lines,
)
from megatron_cpt.planning.simulated import Simulation
from tests.families.folders import MODELS, write_fields
from tests.simulation.ranks import run_settings

CARD = CARDS["H100-80GB"]
LLAMA_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}
MIXTRAL = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
}


def model(
    folder: Path, kind: str, sizes: dict[str, Any], length: int, batch: int, **training: Any
) -> tuple[RunConfig, ModelShape]:
    """A run of a config.json alone."""
    fields = {name: value for name, value in MODELS[kind].items() if name != "head_dim"} | sizes
    path = write_fields(folder, fields)
    settings = run_settings(path, length=length, training={"global_batch_size": batch} | training)
    return config_from_dict(settings), read_shape(path)


def sizes(layout: Layout) -> tuple[int, int, int, int]:
    parallel = layout.config.parallel
    return parallel.tensor, parallel.pipeline, parallel.context, parallel.expert


@pytest.mark.ci
@pytest.mark.parametrize(
    ("kind", "fields", "world", "length"), [("llama", LLAMA_8B, 16, 8192), ("mixtral", MIXTRAL, 16, 4096)]
)
def test_layouts_obey_the_rules_of_a_run_and_fit(
    kind: str, fields: dict[str, Any], world: int, length: int, tmp_path: Path
) -> None:
    config, shape = model(tmp_path, kind, fields, length, 128)
    layouts = search_layouts(config, shape, CARD, world)
    assert layouts
    assert [layout.step.seconds for layout in layouts] == sorted(layout.step.seconds for layout in layouts)
    for layout in layouts:
        assert [*config_faults(layout.config, world), *model_faults(layout.config, shape)] == []
        assert memory_per_rank(shape, layout.config, world).total <= CARD.usable_memory
        kept = replace(layout.config, parallel=config.parallel, training=config.training)
        assert kept == config  # nothing else is changed
    assert len({str(layout.overrides) for layout in layouts}) == len(layouts)


def test_the_overrides_are_the_layout(tmp_path: Path) -> None:
    config, shape = model(tmp_path, "llama", LLAMA_8B, 8192, 128)
    layout = search_layouts(config, shape, CARD, 8)[0]
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(config))
    assert load_config(path, layout.overrides) == layout.config


def test_recomputation_is_the_least_that_fits(tmp_path: Path) -> None:
    config, shape = model(tmp_path, "llama", LLAMA_8B, 8192, 128)
    for layout in search_layouts(config, shape, CARD, 8):
        if layout.config.training.recompute != "none":
            whole = replace(layout.config, training=replace(layout.config.training, recompute="none"))
            assert memory_per_rank(shape, whole, 8).total > CARD.usable_memory


@pytest.mark.ci
def test_a_model_too_large_has_no_layout(tmp_path: Path) -> None:
    config, shape = model(tmp_path, "llama", LLAMA_8B | {"num_hidden_layers": 320}, 8192, 128)
    assert search_layouts(config, shape, CARD, 8) == []


def test_long_sequences_are_shared(tmp_path: Path) -> None:
    config, shape = model(tmp_path, "llama", LLAMA_8B, 131072, 16)
    assert search_layouts(config, shape, CARD, 16)[0].config.parallel.context > 1


def test_what_costs_time_is_ranked_behind(tmp_path: Path) -> None:
    config, shape = model(tmp_path, "llama", LLAMA_8B, 8192, 128)
    settings = {"distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True}

    def seconds(world: int = 16, recompute: str = "none", card: Card = CARD, **parallel: Any) -> float:
        merged = run_settings(
            Path(config.model.hf),
            settings | parallel,
            length=8192,
            training={"global_batch_size": 128, "recompute": recompute},
        )
        return closed_step(config_from_dict(merged), shape, card, world).seconds

    assert seconds(recompute="full") == pytest.approx(4 / 3 * seconds(), rel=0.08)  # all but the output layer
    assert seconds(tensor=4, sequence=True) > seconds(tensor=2, sequence=True) > seconds()
    on_two_machines = seconds(tensor=8, sequence=True, card=replace(CARD, per_machine=4))
    assert on_two_machines > 2 * seconds(tensor=8, sequence=True)
    # The bubble of p stages is (p - 1) / (v m) of a step of m micro batches and v chunks.
    assert seconds(pipeline=4) > seconds(pipeline=4, virtual_pipeline=4) > seconds()
    assert seconds(32) == pytest.approx(seconds(16) / 2, rel=0.15)  # gradients are sent as often as before


def test_the_first_of_each_way_to_share_is_simulated(tmp_path: Path) -> None:
    config, shape = model(tmp_path, "mixtral", MIXTRAL, 4096, 128)
    layouts = search_layouts(config, shape, CARD, 16)
    chosen = distinct_layouts(layouts, 4)
    assert len({sizes(layout) for layout in chosen}) == len(chosen) == 4
    assert chosen[0] is layouts[0]
    for layout in chosen:
        assert layout is next(one for one in layouts if sizes(one) == sizes(layout))


def test_the_best_are_shown_as_overrides_with_their_cost(tmp_path: Path) -> None:
    config, shape = model(tmp_path, "llama", LLAMA_8B, 8192, 128)
    chosen = distinct_layouts(search_layouts(config, shape, CARD, 8), 4)
    ranks = [closed_rank(one.config, shape, CARD, 8) for one in chosen]
    ranks[1] = replace(ranks[1], memory={"activations": 100 * 2**30})  # more than the card has
    tried = [
        TriedLayout(layout, Simulation(layout.config, shape, CARD, "H100-80GB", (rank,), price=2.5))
        for layout, rank in zip(chosen, ranks, strict=True)
    ]
    assert ranked_layouts(tried) == [tried[0], tried[2], tried[3], tried[1]]
    lines = search_lines(71, tried, shown=2)
    assert lines[0].startswith("71 layouts fit by the closed estimate. Simulated were 4, the fastest of each way")
    assert "100.0 too much" in lines[6]
    assert "cost" in lines[2]
    assert "own" not in "".join(lines)
    told = search_lines(71, [*tried[:3], replace(tried[3], is_own=True)])
    assert [line.endswith("RUN.yaml's own") for line in told[2:7]] == [False, False, False, True, False]
    assert lines[-3:] == ["To try", *(f"  {' '.join(one.layout.overrides)}" for one in (tried[0], tried[2]))]
