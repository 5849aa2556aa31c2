"""Which checkpoints stay."""

from pathlib import Path

from megatron_cpt.checkpoint.integrity import MARKER
from megatron_cpt.checkpoint.retention import prune, surplus


def test_the_last_ones_and_round_distances_stay() -> None:
    assert surplus([10, 20, 30, 40, 50], keep_last=2, keep_every=20) == [10, 30]
    assert surplus([10, 20, 30], keep_last=1, keep_every=None) == [10, 20]
    assert surplus([10], keep_last=3, keep_every=None) == []


def test_prune_removes_surplus_and_what_a_cut_short_save_left(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        (tmp_path / f"step-{step:08}").mkdir()
        (tmp_path / f"step-{step:08}" / MARKER).write_text("{}")
    (tmp_path / "step-00000004").mkdir()
    gone = prune(tmp_path, keep_last=2, keep_every=None)
    assert [path.name for path in gone] == ["step-00000001"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
