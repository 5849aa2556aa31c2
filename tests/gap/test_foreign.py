"""Logs of other systems as loss curves."""

from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from megatron_cpt.config.errors import BadInput
from megatron_cpt.gap.curves import WRONG, ForeignSettings, MappedSet, foreign_curves, is_foreign
from megatron_cpt.gap.figures import Recovery, gap_figures

TAG = "lm-loss-validation/lm loss validation"
LOSSES = {0: 4.0, 100: 4.5, 200: 4.2, 300: 4.004, 400: 4.0}


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """A folder as Megatron-LM writes it, with a mark logged again after a restart."""
    writer = SummaryWriter(str(tmp_path / "board"))
    for step, loss in ({200: 9.9} | LOSSES).items():
        writer.add_scalar(TAG, loss, step)
        writer.add_scalar("lm-loss-training/lm loss", loss + 1, step)
    writer.close()
    return tmp_path / "board"


def test_a_tensorboard_folder_gives_figures_without_standard_errors(board: Path):
    settings = ForeignSettings([MappedSet("general", "general", TAG)], tokens_per_step=1000)
    (curve,) = foreign_curves(board, settings)
    assert curve.steps.tolist() == list(LOSSES)
    assert curve.losses.tolist() == pytest.approx(list(LOSSES.values()), abs=1e-6)
    figures = gap_figures(curve)
    assert figures.depth == pytest.approx(0.5, abs=1e-6) and figures.depth_tokens == 100_000
    assert figures.recovery is Recovery.RECOVERED and figures.recovery_tokens == 300_000
    assert figures.depth_standard_error is None and figures.final_standard_error is None
    assert figures.p_value is None and figures.significant is None


def test_a_folder_without_a_map_or_with_a_wrong_one_lists_its_tags(board: Path):
    with pytest.raises(BadInput, match=r"lm-loss-training/lm loss, lm-loss-validation/lm loss validation.*--map"):
        foreign_curves(board, ForeignSettings(tokens_per_step=1000))
    with pytest.raises(BadInput, match="is no tag of it; it has: lm-loss-training"):
        foreign_curves(board, ForeignSettings([MappedSet("general", "general", "loss")], 1000))
    with pytest.raises(BadInput, match="--tokens-per-step"):
        foreign_curves(board, ForeignSettings([MappedSet("general", "general", TAG)]))


def test_a_csv_file_of_tokens_and_losses(tmp_path: Path):
    path = tmp_path / "old.csv"
    path.write_text("tokens, loss, code\n0,4.0,5.0\n1e6,4.5,\n2000000,4.1,3.0\n")
    (general,) = foreign_curves(path, ForeignSettings())
    assert general.tokens.tolist() == [0, 1_000_000, 2_000_000] and general.losses.tolist() == [4.0, 4.5, 4.1]
    sets = [MappedSet("code", "domain", "code"), MappedSet("general", "general", "loss")]
    general, code = foreign_curves(path, ForeignSettings(sets))
    assert general.name == "general"
    assert (code.role, code.tokens.tolist(), code.losses.tolist()) == ("domain", [0, 2_000_000], [5.0, 3.0])


def test_a_run_that_went_on_counting_steps_begins_at_its_start_step(tmp_path: Path):
    path = tmp_path / "old.csv"
    path.write_text("step,loss\n900,4.2\n1000,4.0\n1010,4.4\n1020,nan\n")
    (curve,) = foreign_curves(path, ForeignSettings(tokens_per_step=10, start_step=1000))
    assert curve.tokens.tolist() == [0, 100, 200] and curve.has_baseline
    assert gap_figures(curve).missing == "a loss is not finite"
    (late,) = foreign_curves(path, ForeignSettings(tokens_per_step=10))
    assert "no baseline" in (gap_figures(late).missing or "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("step,loss\n0,4.0\n10,high\n", "line 3: loss = 'high'"),
        ("iteration,loss\n0,4.0\n", "neither a column `tokens` nor `step`"),
        ("step,nll\n0,4.0\n", "loss: is no column of it; it has: nll, step"),
        ("step,loss\n", "holds no loss"),
        ("step,loss\nnan,4.0\n", "column step"),
    ],
)
def test_files_that_cannot_be_read_say_where(tmp_path: Path, text: str, words: str):
    path = tmp_path / "old.csv"
    path.write_text(text)
    with pytest.raises(BadInput, match=words):
        foreign_curves(path, ForeignSettings(tokens_per_step=10))


def test_what_is_foreign(board: Path, tmp_path: Path):
    (tmp_path / "a.csv").write_text("step,loss\n")
    assert is_foreign(board) and is_foreign(tmp_path / "a.csv")
    (board / "records.jsonl").write_text("")
    assert not is_foreign(board) and not is_foreign(tmp_path) and not is_foreign(tmp_path / "b.csv")


def test_accuracies_are_turned_around_and_are_no_losses(tmp_path: Path):
    path = tmp_path / "tasks.csv"
    path.write_text("tokens,val_acc,accumulated\n0,0.5,4.0\n100,0.3,4.1\n200,0.6,4.0\n")
    (curve,) = foreign_curves(path, ForeignSettings([MappedSet("old", "general", "val_acc", accuracy=True)]))
    assert curve.unit == WRONG and curve.losses.tolist() == pytest.approx([0.5, 0.7, 0.4])
    assert gap_figures(curve).depth == pytest.approx(0.2)
    with pytest.raises(BadInput, match=r"val_acc: holds accuracies, by its name.*--map-accuracy"):
        foreign_curves(path, ForeignSettings([MappedSet("old", "general", "val_acc")]))
    assert len(foreign_curves(path, ForeignSettings([MappedSet("old", "general", "accumulated")]))) == 1
    path.write_text("tokens,val_acc\n0,50\n100,30\n")
    with pytest.raises(BadInput, match=r"holds 50, which is no accuracy from 0 to 1\. Divide percentages by 100"):
        foreign_curves(path, ForeignSettings([MappedSet("old", "general", "val_acc", accuracy=True)]))
