"""Which checkpoints stay."""

from dataclasses import asdict
from pathlib import Path

from megatron_cpt.checkpoint.save import best_of, prune, surplus
from megatron_cpt.runs.checkpoint_state import FREQUENT, MARKER, CheckpointState, Layout
from megatron_cpt.runs.folder import write_json


def test_the_last_ones_and_round_distances_stay() -> None:
    assert surplus([10, 20, 30, 40, 50], keep_last=2, keep_every=20) == [10, 30]
    assert surplus([10, 20, 30], keep_last=1, keep_every=None) == [10, 20]
    assert surplus([10], keep_last=3, keep_every=None) == []
    assert surplus([10, 20, 30, 40], keep_last=1, keep_every=None, best=20) == [10, 30]


def test_prune_removes_surplus_and_what_a_cut_short_save_left(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        (tmp_path / f"step-{step:08}").mkdir()
        (tmp_path / f"step-{step:08}" / MARKER).write_text("{}")
    (tmp_path / "step-00000004").mkdir()
    gone = prune(tmp_path, keep_last=2, keep_every=None)
    assert [path.name for path in gone] == ["step-00000001"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def test_the_best_by_a_set_stays_as_long_as_it_is_the_best(tmp_path: Path) -> None:
    """Losses of the checkpoints at steps 1 to 4; step 2 was not evaluated."""
    for step, validation in enumerate(
        ({"general": 3.0}, {}, {"general": 2.5, "code": 1.0}, {"general": 2.75}), start=1
    ):
        checkpoint = tmp_path / f"step-{step:08}"
        position = CheckpointState(
            step, step, step, {}, "", {}, Layout(1, 1, 1, False), FREQUENT, validation=validation
        )
        checkpoint.mkdir()
        write_json(checkpoint / "position.json", asdict(position))
        (checkpoint / MARKER).write_text("{}")
    checkpoints = {step: tmp_path / f"step-{step:08}" for step in range(1, 5)}
    assert best_of(checkpoints, "general") == 3
    assert best_of(checkpoints, "nothing") is None
    prune(tmp_path, keep_last=1, keep_every=None, keep_best="general")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]
