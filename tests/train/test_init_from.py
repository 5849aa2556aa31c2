"""A run that starts from another run's checkpoint takes what its switches say, and nothing else."""

import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.load import load_config
from megatron_cpt.config.schedule import Areas
from megatron_cpt.planning.plan import RunPlan, make_plan
from megatron_cpt.report.read import read_runs
from megatron_cpt.runs.checkpoint_state import read_state
from megatron_cpt.runs.folder import Status, write_status
from megatron_cpt.scaling_law.curves import read_run
from megatron_cpt.train.provenance import whole_history
from tests.ranks import Ranks
from tests.train.runs import column, records_of, train
from tests.workshop import Workshop

ALL_KEPT = ("init_from.load_optimizer=true", "init_from.load_schedule=true", "init_from.load_data_position=true")


@pytest.fixture(scope="module")
def base(one_rank: Ranks, workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps with a checkpoint at 4."""
    run = tmp_path_factory.mktemp("base") / "run"
    settings = ("model.weights=random", "model.dropout=0.1", "checkpoint.keep_last=9")
    one_rank.call(train, path=workshop.write_config(run), overrides=settings)
    return run


def started(ranks: Ranks, workshop: Workshop, run: Path, base: Path, *overrides: str, step: int = 4) -> Path:
    checkpoint = base / "checkpoints" / f"step-{step:08}"
    words = ("model.dropout=0.1", f"init_from.checkpoint={checkpoint}", *overrides)
    ranks.call(train, path=workshop.write_config(run), overrides=words)
    return run


@pytest.mark.ci
def test_all_kept_is_a_resume_in_another_folder(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path, base: Path
) -> None:
    run = started(one_rank, workshop, tmp_path / "run", base, *ALL_KEPT)
    assert records_of(run, "train") == [record for record in records_of(base, "train") if record["step"] > 4]
    ends = [column(records_of(one, "validation"), "loss")[-2:] for one in (base, run)]
    assert ends[0] == ends[1]
    lineage = orjson.loads((run / "lineage.json").read_bytes())
    rates = column(records_of(base, "train"), "learning_rate")
    assert lineage["parent"].endswith("step-00000004")
    assert lineage["parent_forward_area"] == pytest.approx(sum(rates[:4]))
    assert lineage["parent_final_learning_rate"] == rates[3]
    assert lineage["parent_tokens"] == 4 * 8 * 32
    assert lineage["forward_area"] == pytest.approx(sum(rates[4:]))
    assert lineage["tokens"] == 8 * 8 * 32


def test_a_history_reaches_back_to_random_weights() -> None:
    first = {"forward_area": 1.0, "annealing_area": 0.5, "tokens": 100, "peak_learning_rate": 2e-3}
    first |= {"final_learning_rate": 1e-4, "parent_forward_area": 0.0, "parent_annealing_area": 0.0}
    first |= {"parent_tokens": 0, "parent_peak_learning_rate": None}
    whole = whole_history(first)
    assert whole == {name: first[name] for name in whole} and len(whole) == 5
    second = {"forward_area": 0.25, "annealing_area": -0.125, "tokens": 20, "peak_learning_rate": 1e-3}
    second |= {"final_learning_rate": 0.0} | {f"parent_{name}": value for name, value in whole.items()}
    assert whole_history(second) == {
        "forward_area": 1.25, "annealing_area": 0.375, "tokens": 120, "peak_learning_rate": 2e-3,
        "final_learning_rate": 0.0,
    }  # fmt: skip
    # What was trained before our runs is not known, and not taken to be nothing.
    unknown = whole_history(second | {f"parent_{name}": None for name in whole})
    assert unknown == dict.fromkeys(whole) | {"final_learning_rate": 0.0}


@pytest.mark.ci
def test_a_run_from_a_run_from_a_run_knows_all_that_came_before(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path, base: Path
) -> None:
    second = started(one_rank, workshop, tmp_path / "second", base)
    third = started(one_rank, workshop, tmp_path / "third", second, step=12)
    lineage = orjson.loads((third / "lineage.json").read_bytes())
    first, later = (column(records_of(run, "train"), "learning_rate") for run in (base, second))
    assert lineage["parent_forward_area"] == pytest.approx(sum(first[:4]) + sum(later))
    assert lineage["parent_tokens"] == (4 + 12) * 8 * 32


def test_a_conversion_keeps_the_history(tmp_path: Path, base: Path) -> None:
    checkpoint = base / "checkpoints/step-00000004"
    calls = [
        ("convert", "to-hf", str(checkpoint), str(tmp_path / "export")),
        ("convert", "from-hf", str(tmp_path / "export"), str(tmp_path / "checkpoint")),
        ("convert", "extend", str(tmp_path / "export"), str(tmp_path / "extended"), "--new-tokens", "zyxwv"),
    ]
    assert [main(call) for call in calls] == [0, 0, 0]
    history = lineage_of(checkpoint / "hf")
    assert history["forward_area"] > 0 and history["tokens"] == 4 * 8 * 32
    for folder in ("export", "checkpoint/hf", "extended"):
        assert lineage_of(tmp_path / folder) == history, folder


def lineage_of(run: Path) -> dict[str, Any]:
    return orjson.loads((run / "lineage.json").read_bytes())


ELSEWHERE = "{tokens: 60, tokens_per_step: 10, kind: linear, peak_lr: 2e-2, final_lr: 5e-3, warmup: 2 steps}"
# Steps of 0.01, 0.02 and then a line to 0.005 in 4 steps.
FORWARD = 0.01 + 0.02 + 0.01625 + 0.0125 + 0.00875 + 0.005
ANNEALING = 0.00375 * (1 + (1 + 0.999) + (1 + 0.999 + 0.999**2) + (1 + 0.999 + 0.999**2 + 0.999**3))


@pytest.mark.ci
def test_the_history_of_a_base_made_elsewhere_stands_where_a_parents_own_would(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path
) -> None:
    given = f"base_history={ELSEWHERE}"
    run = tmp_path / "run"
    path = workshop.write_config(run)
    one_rank.call(train, path=path, overrides=(given, "training.tokens=4 steps"))
    lineage = lineage_of(run)
    assert lineage["parent_forward_area"] == pytest.approx(FORWARD)
    assert lineage["parent_annealing_area"] == pytest.approx(ANNEALING)
    assert lineage["parent_peak_learning_rate"] == 0.02 and lineage["parent_final_learning_rate"] == 0.005
    assert lineage["parent_tokens"] == 60 and lineage["base_history"]["kind"] == "linear"
    # S2 of the run counts from the last rate of the base, as behind any parent.
    areas = Areas(before=0.005)
    for rate in column(records_of(run, "train"), "learning_rate"):
        areas.add(rate)
    assert lineage["annealing_area"] == pytest.approx(areas.annealing)
    curve = read_run(run, "general")
    assert (curve.base_forward_area, curve.base_annealing_area) == pytest.approx((FORWARD, ANNEALING))
    assert (curve.base_peak_rate, curve.base_final_rate) == (0.02, 0.005)
    # It is kept by what begins from this run, also where the same file is used again.
    child = tmp_path / "child"
    words = (f"init_from.checkpoint={run / 'checkpoints/step-00000004'}", "training.tokens=4 steps", given)
    one_rank.call(train, path=workshop.write_config(child), overrides=words)
    assert lineage_of(child)["parent_forward_area"] == pytest.approx(FORWARD + areas.forward)
    assert lineage_of(child)["parent_peak_learning_rate"] == 0.02
    other = make_faults(child, workshop, *words[:2], given.replace("60", "70"))
    assert "lineage.json tells how the model was trained from its random weights on" in other


@pytest.mark.ci
def test_a_history_that_is_told_at_a_resume_takes_effect(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    run = tmp_path / "run"
    path = workshop.write_config(run)
    one_rank.call(train, path=path, overrides=("training.tokens=4 steps", "schedule.kind=constant"))
    unknown = lineage_of(run)
    assert unknown["parent_forward_area"] is None and unknown["base_history"] is None
    longer = ("training.tokens=8 steps", "schedule.kind=constant")
    one_rank.call(train, path=path, overrides=(*longer, f"base_history={ELSEWHERE}"))
    assert lineage_of(run)["parent_forward_area"] == pytest.approx(FORWARD)
    said = (run / "log.txt").read_text()
    assert "changed for all steps, those done too (lineage.json tells it anew): base_history: not set before" in said
    one_rank.call(train, path=path, overrides=(*longer, "training.tokens=12 steps"))
    assert lineage_of(run)["parent_forward_area"] is None


def test_a_plan_tells_what_is_known_of_the_base(workshop: Workshop, tmp_path: Path) -> None:
    path = workshop.write_config(tmp_path / "run")
    text = make_plan(load_config(path, ["base_history=pythia-410m"])).table()
    assert (
        "Base     pythia-410m: 300B tokens, rate 0.0003 at the highest, 3e-05 at the last (10% of the peak); " in text
    )
    assert "S1 23.6, S2 0.27\n" in text and "Rate     3e-05 before, " in text
    text = make_plan(load_config(path, ["base_history=llama-3-8b"])).table()
    assert "15.0T tokens, rate 0.0003 at the highest, not known at the last; S1 not known, S2 not known" in text


def make_faults(run: Path, workshop: Workshop, *words: str) -> str:
    with pytest.raises(BadInput) as refused:
        make_plan(load_config(workshop.write_config(run.with_name("other")), words))
    return str(refused.value)


def test_weights_alone_begin_a_new_run(one_rank: Ranks, workshop: Workshop, tmp_path: Path, base: Path) -> None:
    run = started(one_rank, workshop, tmp_path / "run", base, step=12)
    ours, theirs = records_of(run), records_of(base)
    assert column(records_of(run, "train"), "learning_rate") == column(records_of(base, "train"), "learning_rate")
    assert column(records_of(run, "train"), "source_tokens") == column(records_of(base, "train"), "source_tokens")
    # The baseline of the new run is the end of the other.
    ends = {
        record["set"]: record["loss"] for record in theirs if record["kind"] == "validation" and record["step"] == 12
    }
    starts = {
        record["set"]: record["loss"] for record in ours if record["kind"] == "validation" and record["step"] == 0
    }
    assert starts == ends


@pytest.mark.ci
def test_the_schedule_goes_on_over_new_data(one_rank: Ranks, workshop: Workshop, tmp_path: Path, base: Path) -> None:
    constant = ("schedule.kind=wsd", "schedule.decay=4 steps", "training.tokens=8 steps")
    run = started(one_rank, workshop, tmp_path / "run", base, "init_from.load_schedule=true", *constant)
    # Steps 5 to 12 of wsd over 12: the warm-up of 3 steps is past.
    expected = [2e-3] * 4 + [2e-3 - share * (2e-3 - 1e-4) for share in (0.25, 0.5, 0.75, 1)]
    assert column(records_of(run, "train"), "learning_rate") == pytest.approx(expected)
    assert records_of(run, "train")[0]["sequences"] == 8
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    assert read_state(run / "checkpoints" / "step-00000004").schedule_shift == 4 * 8 * 32
    before = records_of(run)
    started(one_rank, workshop, run, base, "init_from.load_schedule=true", *constant)
    assert records_of(run) == before


@pytest.mark.ci
def test_the_data_go_on_under_a_new_schedule(one_rank: Ranks, workshop: Workshop, tmp_path: Path, base: Path) -> None:
    run = started(one_rank, workshop, tmp_path / "run", base, "init_from.load_data_position=true")
    ours = records_of(run, "train")
    rest = [record for record in records_of(base, "train") if record["step"] > 4]
    for name in ("step", "tokens", "sequences", "source_tokens"):
        assert column(ours, name) == column(rest, name)
    assert column(ours, "learning_rate")[:3] == pytest.approx([2e-3 / 3, 4e-3 / 3, 2e-3])


def test_optimizer_state_is_taken_or_left(one_rank: Ranks, workshop: Workshop, tmp_path: Path, base: Path) -> None:
    losses = {
        kept: column(
            records_of(started(one_rank, workshop, tmp_path / kept, base, f"init_from.load_optimizer={kept}"), "train"),
            "loss",
        )
        for kept in ("true", "false")
    }
    assert losses["true"][0] == losses["false"][0]
    assert losses["true"][2] != losses["false"][2]


def refusal(path: Path, overrides: tuple[str, ...]) -> str:
    """Job: what a run that cannot start says."""
    with pytest.raises(BadInput) as error:
        train(path, overrides)
    return str(error.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("init_from.load_data_position=true",), "init_from.load_data_position = true: there is no checkpoint"),
        (("init_from.checkpoint=/nowhere",), "is not a complete checkpoint"),
        (
            ("init_from.checkpoint={step}", "init_from.load_data_position=true", "training.global_batch_size=4"),
            "Set it to 8.",
        ),
        (
            ("init_from.checkpoint={step}", "init_from.load_data_position=true", "training.tokens=4 steps"),
            "stands at 1024 tokens",
        ),
        (("init_from.checkpoint={step}", *ALL_KEPT, "data.replay_ratio=0.5"), "phases"),
        (("model.frozen.bottom=3", "model.frozen.top=2"), "the model has 4 layers"),
    ],
)
def test_what_cannot_be_taken_is_said(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path, base: Path, overrides: tuple[str, ...], said: str
) -> None:
    words = tuple(word.format(step=base / "checkpoints" / "step-00000004") for word in overrides)
    assert said in one_rank.call(refusal, path=workshop.write_config(tmp_path / "run"), overrides=words)[0]


@pytest.mark.ci
def test_marks_count_from_where_the_run_begins(one_rank: Ranks, workshop: Workshop, tmp_path: Path, base: Path) -> None:
    marks = ("validation.eval_interval.log_spaced=2 per decade to 100 steps", "validation.eval_interval.at=[5 steps]")
    run = started(one_rank, workshop, tmp_path / "run", base, *ALL_KEPT, *marks)
    validated = [record for record in records_of(run, "validation") if record["set"] == "general"]
    assert column(validated, "step") == [4, 5, 7, 9, 12]
    assert column(validated, "baseline") == [True, False, False, False, False]
    (curve, gap), _ = read_runs([run])[0].validation
    assert curve.name == "general" and curve.tokens.tolist() == [0, 256, 768, 1280, 2048]
    assert gap.missing is None and gap.baseline == validated[0]["loss"]
    # Once it has checkpoints of its own, it still began where it began.
    words = (f"init_from.checkpoint={base / 'checkpoints' / 'step-00000004'}", *ALL_KEPT, *marks)
    shutil.rmtree(run / "checkpoints/step-00000012")
    plan = make_plan(load_config(workshop.write_config(run), words))
    assert plan.start.step == 4 and plan.resume is not None and plan.resume.step == 8
    assert plan.evaluation_steps["general"] == (4, 5, 7, 9, 12)
    # Killed before its first checkpoint it begins again, and has one baseline.
    shutil.rmtree(run / "checkpoints")
    write_status(run / "status.json", Status("running", step=4))
    started(one_rank, workshop, run, base, *ALL_KEPT, *marks)
    assert [record for record in records_of(run, "validation") if record["set"] == "general"] == validated


def test_a_plan_shows_what_is_left_to_do(workshop: Workshop, tmp_path: Path, base: Path) -> None:
    words = [f"init_from.checkpoint={base / 'checkpoints' / 'step-00000004'}", *ALL_KEPT]
    plan = make_plan(load_config(workshop.write_config(tmp_path / "run"), words))
    whole = make_plan(load_config(workshop.write_config(tmp_path / "run")))
    text = plan.table()
    assert "8 steps of 8 x 32 = 256 tokens, 2.05K tokens in all" in text
    assert "steps 5 to 12, counted on from" in text
    assert "Rate     0.00194 before, 0.00178 at the first step, 0.00178 at the highest, 0.0001 at the last" in text
    assert plan.model.training_flops == pytest.approx(whole.model.training_flops * 8 / 12)
    rows = plan.to_dict()["blend"]["sources"]
    assert sum(row["sequences"] for row in rows) == 64 and sum(row["share"] for row in rows) == 1
    # What was read and what is left are the whole.
    before = whole.blend.source_sequences(32)
    assert [row.sequences - before[row.name] for row in whole.blend.rows] == [row["sequences"] for row in rows]
    assert plan.to_dict()["start"] == {"step": 4, "tokens": 1024, "sequences": 32, "schedule_shift": 0}
    assert plan.evaluations[0].share_of_one == pytest.approx(whole.evaluations[0].share_of_one * 12 / 8)


def test_a_plan_shows_the_rates_around_a_resume(workshop: Workshop, tmp_path: Path, base: Path) -> None:
    shutil.copytree(base, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000012")
    longer = make_plan(load_config(workshop.write_config(tmp_path / "run"), ["training.tokens=24 steps"]))
    assert "Resume   after step 8: rate 0.000885 at it, 0.00164 at the next step" in longer.table()


STABLE = ("schedule.kind=wsd", "schedule.warmup=2 steps", "schedule.decay=4 steps", "data.replay_ratio=null")


@pytest.mark.ci
def test_a_decay_branch_repeats_nothing_and_leaves_the_peak_at_its_first_step(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path
) -> None:
    """The two recipes of docs/schedules.md."""
    stable = workshop.write_config(tmp_path / "stable")
    general = ("data.sources.domain.weight=0", "training.tokens=16 steps", "checkpoint.keep_last=9")
    one_rank.call(train, path=stable, overrides=(*STABLE, *general))
    taken = f"init_from.checkpoint={tmp_path / 'stable/checkpoints/step-00000008'}"
    kept = (*STABLE, taken, "init_from.load_optimizer=true", "init_from.load_schedule=true")
    falling = pytest.approx([2e-3 - share * (2e-3 - 1e-4) for share in (0.25, 0.5, 0.75, 1)])

    alone = workshop.config(tmp_path / "alone")
    del alone["data"]["sources"]["general"]
    (tmp_path / "alone.yaml").write_text(yaml.safe_dump(alone))
    one_rank.call(train, path=tmp_path / "alone.yaml", overrides=(*kept, "training.tokens=4 steps"))
    assert column(records_of(tmp_path / "alone", "train"), "learning_rate") == falling
    assert "begins anew" not in (tmp_path / "alone/log.txt").read_text()

    path = workshop.write_config(tmp_path / "mixed")
    phases = "data.phases=[{from_tokens: 0}, {from_tokens: 8 steps, weights: {domain: 7, general: 3}}]"
    mixed = ("init_from.load_data_position=true", "data.sources.domain.weight=0", phases, "training.tokens=12 steps")
    one_rank.call(train, path=path, overrides=(*kept, *mixed))
    trained = records_of(tmp_path / "mixed", "train")
    assert column(trained, "learning_rate") == falling
    # The stable run's text goes on after the 8 steps of 8 sequences of 32 tokens that it read.
    assert trained[0]["source_tokens"]["general"] > 8 * 8 * 32 and trained[0]["source_tokens"]["domain"] > 0

    path = workshop.write_config(tmp_path / "short")
    short = (*kept, "training.tokens=4 steps")
    repeated = plan_of(path, *short).warnings
    assert any("general begins anew" in line and "has read 2.05K tokens" in line for line in repeated)
    assert not any("domain begins anew" in line for line in repeated)
    jumped = plan_of(path, *short, "schedule.peak_lr=3e-3").warnings
    assert any("the parent's last update had 0.002, and this schedule has 0.003 there" in line for line in jumped)
    for word, said in (
        ("schedule.decay=8 steps", "the rate would go from 0.002 to 0.00105 at once. Set it to 1024 tokens or less"),
        ("schedule.decay=null", "a tenth of parent and run together would be 307 tokens"),
    ):
        with pytest.raises(BadInput, match=said):
            plan_of(path, *short, word)


def plan_of(path: Path, *words: str) -> RunPlan:
    return make_plan(load_config(path, words))


def test_commands_take_a_run_for_its_newest_checkpoint(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path, base: Path
) -> None:
    texts = ["--tasks", str(workshop.folder / "texts.jsonl")]
    assert one_rank.call(command, words=["average", str(base), "--output", str(tmp_path / "average")]) == [0]
    losses = []
    for source in (base, base / "checkpoints/step-00000012", tmp_path / "average", base / "checkpoints/step-00000004"):
        output = tmp_path / f"{len(losses)}.json"
        assert one_rank.call(command, words=["evaluate", str(source), *texts, "--output", str(output)]) == [0]
        losses.append(orjson.loads(output.read_bytes())["tasks"]["texts"]["loss"])
    assert losses[0] == losses[1] == losses[2] != losses[3]


def command(words: list[str]) -> int:
    """Job: a command in a process of the pool."""
    return main(words)
