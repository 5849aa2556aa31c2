"""The studies: every run of their designs is one that `megatron-cpt train` takes."""

from pathlib import Path

import pytest

from examples.studies.laws import study as laws
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
