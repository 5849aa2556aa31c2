"""The studies: every run of their designs is one that `megatron-cpt train` takes."""

import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import orjson
import pytest

from examples.studies.arms import Figures, read_curves, write_tables
from examples.studies.instruction import study as instruction
from examples.studies.laws import study as laws
from examples.studies.runs import add_rows, make_bases, names_of, prepare, read_rows, train_missing
from examples.studies.stability_gap import study as gap
from examples.studies.stability_gap.evaluate import COURSE_STEPS, FIGURES, SHOWN, course, seeds_of
from megatron_cpt.config.checks import config_faults
from megatron_cpt.config.load import config_from_dict
from megatron_cpt.scaling_law.curves import Curve, read_run


@pytest.mark.parametrize("arm", laws.ARMS, ids=lambda arm: arm.name)
def test_arms_of_the_study_of_laws(arm: laws.Arm, tmp_path: Path) -> None:
    config = config_from_dict(laws.run_config(tmp_path, tmp_path / "bases", arm, seed=1))
    assert config_faults(config) == []
    assert config.tokens_per_step == 4096


def test_the_base_of_the_study_of_laws(tmp_path: Path) -> None:
    config = config_from_dict(laws.base_config(tmp_path))
    assert config_faults(config) == []
    assert {step % laws.BASE_DECAY for step in laws.BASES.values()} == {0}  # each is a checkpoint


def test_arms_of_the_study_of_laws_have_names_of_their_own() -> None:
    assert len({arm.name for arm in laws.ARMS}) == len(laws.ARMS)


@pytest.mark.parametrize("arm", gap.ARMS, ids=lambda arm: arm.name)
def test_arms_of_the_study_of_the_stability_gap(arm: gap.Arm, tmp_path: Path) -> None:
    config = config_from_dict(gap.run_config(tmp_path, tmp_path / "base", arm, seed=1))
    assert config_faults(config) == []
    assert config.total_tokens == gap.TOKENS


def test_the_base_of_the_study_of_the_stability_gap(tmp_path: Path) -> None:
    assert config_faults(config_from_dict(gap.base_config(tmp_path))) == []


@pytest.mark.parametrize("arm", instruction.ARMS, ids=lambda arm: arm.name)
def test_arms_of_the_study_of_instruction_data(arm: instruction.Arm, tmp_path: Path) -> None:
    config = config_from_dict(instruction.run_config(tmp_path, arm, seed=1))
    assert config_faults(config) == []
    assert config.total_tokens == instruction.TOKENS


def test_arms_are_held_against_one(tmp_path: Path) -> None:
    """Five seeds of two arms 0.2 apart, and one that has not been run."""
    values = {"one": 1.0, "other": 1.2}
    runs = {
        f"{arm}-seed-{seed}": {"loss general": {0: 2.0, 600: value + 0.001 * seed}}
        for arm, value in values.items()
        for seed in range(1, 6)
    }
    runs["one-seed-1"]["cosine"] = {0: 0.5}
    figures: Figures = {
        "at the end": lambda series: series["loss general"][600],
        "of some": lambda series: series["cosine"][0] if "cosine" in series else None,
    }
    table = write_tables(tmp_path, runs, ["one", "other", "not run"], figures, "one")
    assert table.splitlines()[2:] == [
        "| one | 5 | +1.003 ± 0.002 | +0.500 |",
        "| other | 5 | +1.203 ± 0.002* |  |",
    ]
    [_, row] = (tmp_path / "differences.csv").read_text().splitlines()
    assert row.startswith("at the end,other,one,0.19999")


def test_two_seeds_are_not_tested(tmp_path: Path) -> None:
    runs = {
        f"{arm}-seed-{seed}": {"x": {0: arm == "b"}} for arm, seeds in (("a", 3), ("b", 2)) for seed in range(seeds)
    }
    runs = {name.replace("seed-0", "seed-9"): series for name, series in runs.items()}
    write_tables(tmp_path, runs, ["a", "b"], {"end": lambda series: float(series["x"][0])}, "a")
    assert (tmp_path / "differences.csv").read_text().splitlines()[1] == "end,b,a,1.0,,,"


def test_the_course_of_an_arm_is_told_step_by_step() -> None:
    runs = {
        f"{arm}-seed-{seed}": {"gradient norm general": {step: value * step + seed for step in COURSE_STEPS}}
        for arm, value in {"full": 2.0, "full-once": 5.0}.items()
        for seed in (1, 2)
    }
    first, _, row = course("full", seeds_of(runs, "full")).splitlines()
    assert first == "| full, 2 seeds; step | 1 | 5 | 15 | 22 | 30 | 60 | 150 | 600 |"
    assert row == (
        "| norm of the gradient: general text | 3.50 ± 0.71 | 11.50 ± 0.71 | 31.50 ± 0.71 | 45.50 ± 0.71 "
        "| 61.50 ± 0.71 | 121.50 ± 0.71 | 301.50 ± 0.71 | 1201.50 ± 0.71 |"
    )


def test_the_page_of_claims_has_the_tables_of_the_results(tmp_path: Path) -> None:
    """All that evaluate.py prints of the arms, and of the courses that the page shows.

    What is said of the first paper's claims has no other changes of losses and accuracies than those tables.
    """
    page = (Path(__file__).parents[2] / "docs/claims.md").read_text()
    runs = read_curves(gap.RESULTS / "curves.csv")
    printed = write_tables(tmp_path, runs, [arm.name for arm in gap.ARMS], FIGURES, "re-warmed", SHOWN)
    courses = [course(arm, seeds_of(runs, arm)) for arm in ("re-warmed", "replay-20", "all-three", "general-alone")]
    for table in (printed, *courses):
        assert table in page, table
    assert f"{len(runs)} of the {len(gap.ARMS) * len(gap.SEEDS)} runs" in page
    claims = page.partition("### Its claims")[2].partition("## The second paper")[0]
    said = re.findall(r"[+-]\d\.\d\d\d?(?: ± \d\.\d{3})?", claims)
    assert len(said) > 40 and not [figure for figure in said if figure not in "".join((printed, *courses))]


def test_results_are_added_run_by_run(tmp_path: Path) -> None:
    curves = tmp_path / "curves.csv"
    assert names_of(curves) == set()
    add_rows(curves, [("full-seed-1", "loss general", 0, 4.5), ("full-seed-1", "loss general", 600, 4.75)])
    add_rows(curves, [("full-seed-2", "loss general", 0, 4.5)])
    assert names_of(curves) == {"full-seed-1", "full-seed-2"}
    assert curves.read_text().splitlines()[0] == "run,series,step,value"


def prepare_three(study: Path) -> None:
    """Three small corpora, tokenized."""
    corpora = {name: study / f"{name}.jsonl" for name in ("general", "domain", "other")}
    for name, path in corpora.items():
        lines = [f'{{"text": "{name} {number} of many, and more of it {number * 7}."}}' for number in range(3000)]
        path.write_text("\n".join(lines))
    prepare(study, corpora, ("general", "domain"), laws.MODEL)
    (study / "configs").mkdir()


def test_a_base_of_other_texts_is_refused(tmp_path: Path) -> None:
    for folder, words in (("base-config", "one"), ("results/bases/decayed", "other")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "tokenizer.json").write_text(words)
    with pytest.raises(SystemExit, match="made of other texts"):
        make_bases(tmp_path, {}, {"decayed": 70}, tmp_path / "results")


@pytest.mark.slow
def test_a_curve_of_the_results_is_that_of_the_run(tmp_path: Path) -> None:
    prepare_three(tmp_path)
    arm = laws.Arm("two-stages", 25, steps=60)
    config = laws.run_config(tmp_path, tmp_path / "bases", arm, seed=1)
    config["model"] = {"hf": str(tmp_path / "base-config"), "weights": "random"}
    config["training"] |= {"global_batch_size": 2, "micro_batch_size": 2}
    for settings in config["validation"]["sets"].values():
        settings["tokens"] = "1K"
    name, curves = laws.run_name(arm, 1), tmp_path / "curves.csv"
    for _ in range(2):  # what is there is not run or added again
        train_missing(tmp_path, curves, {name: config}, 1, laws.rows_of)
    assert len(list(read_rows(curves))) == len(list(laws.rows_of(tmp_path, name)))
    for set_name in laws.SETS:
        of_run = read_run(tmp_path / "runs" / name, set_name)
        of_results = laws.curve_of(laws.values_of(tmp_path), arm, 1, set_name)
        for field in fields(Curve):
            said, true = getattr(of_results, field.name), getattr(of_run, field.name)
            assert (said is None) == (true is None), field.name
            if isinstance(true, str):
                assert said == true, field.name
            elif true is not None:
                np.testing.assert_allclose(said, true, rtol=1e-5, err_msg=field.name)


@pytest.mark.slow
def test_the_bases_are_kept_with_their_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reason: a run and two exports."""
    steps = {"BASE_STEPS": 70, "BASE_DECAY": 35}
    for name, value in steps.items():
        monkeypatch.setattr(laws, name, value)
    prepare_three(tmp_path)
    for _ in range(2):  # what is there is not made again
        make_bases(tmp_path, laws.base_config(tmp_path), {"decayed": 70, "stable": 35}, tmp_path / "results")
    rates = {}
    for name in ("decayed", "stable"):
        lineage = orjson.loads((tmp_path / "results/bases" / name / "lineage.json").read_bytes())
        rates[name] = lineage["final_learning_rate"]
        assert lineage["peak_learning_rate"] == laws.BASE_PEAK
    assert rates == {"decayed": pytest.approx(0.1 * laws.BASE_PEAK), "stable": laws.BASE_PEAK}
