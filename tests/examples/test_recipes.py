"""The recipes of examples/recipes: each file is loaded as it stands and planned on 8, 64 and 512 GPUs, each arm too."""

import json
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.checks import config_faults
from megatron_cpt.config.load import load_config
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.config.units import parse_count
from megatron_cpt.corpus.selection import whole_dataset, write_selection
from megatron_cpt.mixture.blend import BlendPlan
from megatron_cpt.planning.cards import CARDS
from megatron_cpt.scaling_law.sweep import read_sweep, write_sweep
from tests.examples.recipes import FOLDER, RECIPES, WORLDS, Recipe, plan_of, with_table, world
from tests.ranks import Ranks
from tests.train.runs import records_of, train
from tests.workshop import Workshop, write_model_with_experts, write_tokenizer_of

READMES = sorted(FOLDER.glob("*/README.md"))
COMMAND = re.compile(r"^megatron-cpt (.*?)(?:\s+#.*)?$", re.MULTILINE)


@pytest.fixture(scope="module", autouse=True)
def folder() -> Iterator[None]:
    """The models without weights, and the examples where a clone has them."""
    with world():
        Path("examples").symlink_to(FOLDER.parent)
        yield


def test_every_recipe_is_planned_and_listed() -> None:
    runs = {str(path.relative_to(FOLDER)) for path in FOLDER.glob("*/*.yaml") if path.name != "ARMS.yaml"}
    assert runs == {recipe.path for recipe in RECIPES}
    listed = (FOLDER.parent / "README.md").read_text()
    for readme in READMES:
        assert f"recipes/{readme.parent.name}/README.md" in listed
    assert {path.parent for path in READMES} == {path for path in FOLDER.iterdir() if path.is_dir()}


@pytest.mark.parametrize("gpus", WORLDS)
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.path)
def test_a_recipe_is_planned_and_fits(recipe: Recipe, gpus: int) -> None:
    config = recipe.config(gpus)
    assert config_faults(config, gpus) == []
    plan = plan_of(config, gpus)
    assert plan.model.memory.total < CARDS[recipe.card(gpus)].usable_memory
    # An evaluation before the first update, and about twenty at least.
    for steps in plan.evaluation_steps.values():
        assert steps[0] == 0 and steps[-1] == plan.steps
        assert max(later - earlier for earlier, later in pairwise(steps)) <= plan.steps / 19


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_the_table_of_a_readme_is_what_plan_prints(readme: Path) -> None:
    assert readme.read_text() == with_table(readme), "python -m tests.examples.recipes writes the tables"


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_the_commands_of_a_readme_are_commands(readme: Path) -> None:
    lines = COMMAND.findall(readme.read_text().replace("\\\n", " "))
    assert any(line.startswith("train ") for line in lines) and any(line.startswith("prepare ") for line in lines)
    for line in lines:
        command, *words = shlex.split(line)
        parser = import_module(f"megatron_cpt.commands.{command}").parser()
        parser.parse_intermixed_args(words) if command in ("plan", "train") else parser.parse_args(words)


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_the_pilots_of_a_readme_could_start(readme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER.parents[1])
    for line in COMMAND.findall(readme.read_text().replace("\\\n", " ")):
        words = shlex.split(line)
        if words[:2] == ["law", "sweep"]:
            # The sources' sizes, which matching needs, are of data that are not here.
            words = [word for word in words if word != "--match-epochs"]
            assert main([*words, "--output", str(tmp_path / "pilots")]) == 0


def epochs(blend: BlendPlan) -> dict[str, float]:
    return {row.name: round(row.epochs, 2) for row in blend.rows}


def shares(blend: BlendPlan) -> dict[str, float]:
    return {row.name: round(float(row.share), 3) for row in blend.rows}


LLAMA = {"github": 0.045, "wikipedia": 0.045, "books": 0.045, "arxiv": 0.025, "stackexchange": 0.02}
"""Shares of Llama's mixture other than web text (arXiv:2302.13971, Table 1)."""


def is_strategies(plan) -> bool:
    return shares(plan.blend) == {"medicine": 0.82} | LLAMA and epochs(plan.blend)["medicine"] == 3.28


def full(plan) -> bool:
    return plan.blend.rows[0].tokens == pytest.approx(50e9, rel=1e-4) and len(plan.blend.rows) == 1


def replayed(share: float) -> Callable[..., bool]:
    return lambda plan: shares(plan.blend)["web"] == share and plan.tokens == pytest.approx(50e9, rel=1e-4)


def read(times: float) -> Callable[..., bool]:
    return lambda plan: epochs(plan.blend)["medicine"] == times and plan.tokens == pytest.approx(20e9, rel=1e-4)


ARMS: dict[str, dict[str, Callable[..., bool]]] = {
    "medical": {
        "full-50B": full,
        "rewarmed-50B": lambda plan: full(plan) and plan.config.schedule.peak_lr == 3e-4,
        "replay-10-50B": replayed(0.1),
        "replay-20-50B": replayed(0.2),
        "replay-30-50B": replayed(0.3),
        "frozen-top-5-50B": lambda plan: full(plan) and plan.config.model.frozen.top == 5,
        "frozen-bottom-5-50B": lambda plan: full(plan) and plan.config.model.frozen.bottom == 5,
        "strategies": is_strategies,
        "random-5B-4-epochs": read(4),
        "best-5B-4-epochs": read(4),
        "strategies-fixed": lambda plan: shares(plan.blend) == {"medicine": 0.82} | LLAMA,
        "random-20B-1-epoch": read(1),
        "best-20B-1-epoch": read(1),
        "mixture-random-20B": read(0.82),
        "best-5B-4-epochs-low-peak": lambda plan: read(4)(plan) and plan.config.schedule.peak_lr == 1e-5,
        "general-20B": lambda plan: list(shares(plan.blend)) == ["web"],
    },
    "rewarm_replay": {
        f"replay-{name}": lambda plan, percent=percent: shares(plan.blend)["pile"] == percent / 100
        for name, percent in (("0", 0), ("half", 0.5), ("1", 1), ("5", 5), ("10", 10), ("50", 50))
    }
    | {"old-text-alone": lambda plan: list(shares(plan.blend)) == ["pile"]},
    "general": {
        "full-100B": lambda plan: epochs(plan.blend) == {"web": 1.0},
        "random-11B-7-epochs": lambda plan: epochs(plan.blend) == {"web": 7.0},
        "fresh-77B-1-epoch": lambda plan: epochs(plan.blend) == {"web": 0.77},
        "random-5B-15-epochs": lambda plan: epochs(plan.blend) == {"web": 15.4},
    },
}
"""What each arm is there for, looked for in its plan."""


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_is_planned(name: str, tmp_path: Path) -> None:
    path = FOLDER / name / "ARMS.yaml"
    sweep = read_sweep(path)
    configs = {config.stem.removesuffix("-seed-1"): config for config in write_sweep(sweep)}
    assert set(configs) == set(ARMS[name])
    for arm, config in configs.items():
        loaded: RunConfig = load_config(config)
        assert config_faults(loaded, sweep.nproc) == [], arm
        assert ARMS[name][arm](plan_of(loaded, sweep.nproc)), arm


def test_each_file_of_arms_is_looked_at() -> None:
    assert {path.parent.name for path in FOLDER.glob("*/ARMS.yaml")} == set(ARMS)


def shrunk(recipe: str, workshop: Workshop, experts: Path, run: Path) -> Path:
    """A recipe as it stands but for its size: steps of 256 tokens, a small model and text, two ranks."""
    values: dict[str, Any] = yaml.safe_load((FOLDER / recipe).read_text())
    values["run"]["folder"] = str(run)
    values["model"]["hf"] = str(experts if "expert" in values["parallel"] else workshop.hf)
    length = 128 if "rope" in values["model"] else 32
    if "rope" in values["model"]:
        values["model"]["rope"]["max_position_embeddings"] = length
    values["data"]["sequence_length"] = length
    sources = values["data"]["sources"]
    for number, (name, source) in enumerate(sources.items()):
        # A part of the text each: sources that share documents are refused.
        whole = whole_dataset(workshop.prefix("general" if source.get("role") else "domain"))
        part = slice(number, None, len(sources))
        some = replace(whole, documents=whole.documents[part], starts=whole.starts[part], lengths=whole.lengths[part])
        write_selection(run.parent / name, [some], {})
        source["paths"] = [str(run.parent / f"{name}.selection.json")]
        if "sample_per_epoch" in source:
            source["sample_per_epoch"]["tokens"] = max(
                length, int(parse_count(source["sample_per_epoch"]["tokens"]) / 5e6)
            )
    for part in values["validation"]["sets"].values():
        part |= {"paths": [f"{workshop.prefix('domain')}.validation"], "tokens": 4 * length}
    values["validation"]["eval_interval"]["every"] = values["checkpoint"]["save_interval"] = "4 steps"
    values["training"] |= {"tokens": "8 steps", "global_batch_size": 8, "micro_batch_size": 2, "precision": "fp32"}
    for name in {"warmup", "decay"} & values["schedule"].keys():
        values["schedule"][name] = "2 steps"
    values["parallel"] |= {name: 2 for name in ("tensor", "expert") if name in values["parallel"]}
    if "context" in values["parallel"]:
        values["parallel"] |= {"tensor": 1, "sequence": False}
    if values["checkpoint"]["export_hf"]:
        values["checkpoint"]["export_hf"]["every"] = "4 steps"
    path = run.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [recipe.path for recipe in RECIPES])
def test_a_recipe_trains(recipe: str, two_ranks: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    write_model_with_experts(experts := tmp_path / "experts")
    write_tokenizer_of(workshop, experts)
    run = tmp_path / "run"
    assert two_ranks.call(train, path=shrunk(recipe, workshop, experts, run)) == [0, 0]
    assert len(records_of(run, "train")) == 8 and (run / "hf/config.json").is_file()
    lineage = json.loads((run / "lineage.json").read_text())
    config = load_config(FOLDER / recipe)
    assert (lineage["base_history"] or {}).get("name") == (config.base_history and config.base_history.name)


def test_the_annealed_start_changes_its_blend_at_a_fifth_of_the_peak() -> None:
    plan = plan_of(load_config(FOLDER / "annealed_start/llama2_7b.yaml"), 8)
    first, second = plan.blend.phases
    assert second.first_sequence / plan.blend.total_sequences == pytest.approx(0.711, abs=0.001)
    assert list(map(Fraction, ("1/2", "1/2", "0"))) == list(first.shares)
    assert plan.start.rate_before == 3e-5 and "Rate     3e-05 before, 3e-05 at the first step" in plan.table()


def test_the_decay_branch_leaves_the_rate_where_stage_1_stands() -> None:
    text = plan_of(load_config(FOLDER / "decay_branch/olmo2_7b.yaml"), 8).table()
    assert "Rate     6.14e-05 before, 6.15e-05 at the first step, 6.15e-05 at the highest, 0 at the last" in text


def test_long_context_goes_on_to_128k() -> None:
    words = ["data.sequence_length=131072", "model.rope.max_position_embeddings=131072", "training.recompute=full"]
    words += ["training.global_batch_size=32", "model.hf=runs/long_context_64k/hf"]
    assert all(word in (FOLDER / "long_context/README.md").read_text() for word in words)
    words[-1] = "model.hf=models/Meta-Llama-3-8B"
    plan = plan_of(load_config(FOLDER / "long_context/llama3_8b.yaml", words), 8)
    assert plan.model.memory.total < CARDS["H100-80GB"].usable_memory
