"""The studies: every run of their designs is one that `megatron-cpt train` takes."""

from pathlib import Path

import pytest

from examples.studies.laws import study as laws
from examples.studies.stability_gap import study as gap
from megatron_cpt.config.checks import config_faults
from megatron_cpt.config.load import config_from_dict


@pytest.mark.parametrize("arm", laws.ARMS, ids=lambda arm: arm.name)
def test_arms_of_the_study_of_laws(arm: laws.Arm, tmp_path: Path) -> None:
    config = config_from_dict(laws.run_config(tmp_path, arm, seed=1))
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
    config = config_from_dict(gap.run_config(tmp_path, arm, seed=1))
    assert config_faults(config) == []
    assert config.total_tokens == gap.TOKENS


def test_the_base_of_the_study_of_the_stability_gap(tmp_path: Path) -> None:
    assert config_faults(config_from_dict(gap.base_config(tmp_path))) == []


def test_results_are_added_run_by_run(tmp_path: Path) -> None:
    curves = tmp_path / "curves.csv"
    assert gap.names_of(curves) == set()
    gap.add_rows(curves, [("full-seed-1", "loss general", 0, 4.5), ("full-seed-1", "loss general", 600, 4.75)])
    gap.add_rows(curves, [("full-seed-2", "loss general", 0, 4.5)])
    assert gap.names_of(curves) == {"full-seed-1", "full-seed-2"}
    assert curves.read_text().splitlines()[0] == "run,series,step,value"
