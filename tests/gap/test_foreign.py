"""Logs of other systems as loss curves."""

import json
import shutil
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from megatron_cpt.config.errors import BadInput
from megatron_cpt.gap.curves import WRONG, ForeignSettings, MappedSet, foreign_curves, is_foreign
from megatron_cpt.gap.figures import Recovery, gap_figures

TAG = "lm loss validation"
LOSSES = {0: 4.0, 100: 4.5, 200: 4.2, 300: 4.004, 400: 4.0}


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """A folder as Megatron-LM writes it, with a mark logged again after a restart."""
    writer = SummaryWriter(str(tmp_path / "board"))
    for step, loss in ({200: 9.9} | LOSSES).items():
        writer.add_scalar(TAG, loss, step)
        writer.add_scalar("lm loss", loss + 1, step)
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
    with pytest.raises(BadInput, match=r"lm loss, lm loss validation.*--map"):
        foreign_curves(board, ForeignSettings(tokens_per_step=1000))
    with pytest.raises(BadInput, match="is no tag of it; it has: lm loss"):
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
    assert gap_figures(curve).not_finite == "step 1,020"
    (late,) = foreign_curves(path, ForeignSettings(tokens_per_step=10))
    assert "no baseline" in (gap_figures(late).missing or "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("step,loss\n0,4.0\n10,high\n", "line 3: loss = 'high'"),
        ("time,loss\n0,4.0\n", "neither a column `tokens` nor `step`"),
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


def test_exports_of_tensorboard_and_weights_and_biases(tmp_path: Path):
    path = tmp_path / "board.csv"
    path.write_text("Wall time,Step,Value\n1.7e9,0,4.0\n1.7e9,100,4.5\n1.7e9,200,4.1\n")
    (curve,) = foreign_curves(path, ForeignSettings(tokens_per_step=10))
    assert curve.tokens.tolist() == [0, 1000, 2000] and curve.losses.tolist() == [4.0, 4.5, 4.1]
    path = tmp_path / "wandb.csv"
    path.write_text('"Step","run-1 - val/loss","run-1 - val/loss__MIN"\n"0","4.0","4.0"\n"100","4.5","4.5"\n')
    (curve,) = foreign_curves(path, ForeignSettings([MappedSet("general", "general", "run-1 - val/loss")], 10))
    assert curve.losses.tolist() == [4.0, 4.5]


def test_the_folder_of_hugging_faces_trainer(tmp_path: Path):
    folder = tmp_path / "output"
    for name in ("Nov01_a", "Nov02_b"):
        writer = SummaryWriter(str(folder / "runs" / name))
        for step, loss in LOSSES.items():
            writer.add_scalar("eval/loss", loss, step)
        writer.close()
    chosen = ForeignSettings([MappedSet("general", "general", "eval/loss")], 10)
    assert is_foreign(folder)
    with pytest.raises(BadInput, match="holds several logs: runs/Nov01_a, runs/Nov02_b"):
        foreign_curves(folder, chosen)
    shutil.rmtree(folder / "runs" / "Nov02_b")
    (curve,) = foreign_curves(folder, chosen)
    assert curve.steps.tolist() == list(LOSSES)
    history = [{"step": step, "loss": 9.0, "epoch": 0.1} for step in LOSSES]
    history += [{"step": step, "eval_loss": loss, "eval_runtime": 3} for step, loss in LOSSES.items()]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history, "global_step": 400}))
    chosen = ForeignSettings([MappedSet("general", "general", "eval_loss")], 10)
    for path in (folder, folder / "trainer_state.json"):
        assert is_foreign(path)
        (curve,) = foreign_curves(path, chosen)
        assert curve.losses.tolist() == list(LOSSES.values())
    (folder / "trainer_state.json").write_text("{}")
    with pytest.raises(BadInput, match="is not what Hugging Face's Trainer writes"):
        foreign_curves(folder, chosen)


def test_the_text_that_megatron_lm_prints(tmp_path: Path):
    path = tmp_path / "slurm-17.out"
    lines = ["using world size: 8", "-" * 20]
    for step, loss in LOSSES.items():
        if step:
            counts = f"iteration {step:8d}/    1000 | consumed samples:   {step * 8} | learning rate: 1.000000E-04 |"
            lines.append(
                f" [2026-01-01 10:00:00] {counts} lm loss: {loss + 1:.6E} | loss scale: 1.0 | grad norm: 1.000 |"
            )
        value = f"lm loss value: {loss:.6E} | lm loss PPL: 5.4E+01 | "
        lines.append(f"[default7]: validation loss at iteration {step} | {value}")
    lines.append(f" validation loss at iteration 400 on test set | {value.replace('4.0', '9.0')}")
    path.write_text("\n".join(lines))
    assert is_foreign(path) and not is_foreign(Path(__file__).with_name("test_gone.py"))
    sets = [MappedSet("general", "general", TAG), MappedSet("training", "domain", "lm loss")]
    general, training = foreign_curves(path, ForeignSettings(sets, tokens_per_step=10))
    assert general.losses.tolist() == pytest.approx(list(LOSSES.values()))
    assert training.losses.tolist() == pytest.approx([loss + 1 for step, loss in LOSSES.items() if step])
