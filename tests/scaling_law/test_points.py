"""Curves from CSV files and run folders: real learning rates, and what is missing stays missing."""

from pathlib import Path

import numpy as np
import orjson
import pytest
from torch.utils.tensorboard import SummaryWriter

from megatron_cpt.config.errors import BadInput
from megatron_cpt.scaling_law.curves import rates_of_every_update, read_csv, read_run, read_tensorboard


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_missing_loss_gives_a_rate_and_no_point(tmp_path: Path):
    curve = read_csv(write(tmp_path / "a.csv", "step,lr,loss\n0,0,9\n2,2,5.0\n4,4,\n6,6,4.0\n8,8,nan\n"))
    assert curve.steps.tolist() == [2, 6]
    assert curve.losses.tolist() == [5.0, 4.0]
    assert curve.rates.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert curve.after(3).steps.tolist() == [6] and len(curve.after(3).rates) == 8


def test_rates_between_rows_and_before_the_first():
    steps, rates = np.array([4, 6, 8, 10]), np.array([4.0, 4.0, 1.0, 1.0])
    # level, then a jump at the later row; before it, a rise from 0
    assert rates_of_every_update(steps, rates).tolist() == [1, 2, 3, 4, 4, 4, 4, 1, 1, 1]
    assert rates_of_every_update(steps, rates, warmup_steps=2).tolist() == [2, 4, 4, 4, 4, 4, 4, 1, 1, 1]
    sloped = rates_of_every_update(steps, np.array([4.0, 2.0, 1.0, 0.0]))
    assert sloped.tolist() == [1, 2, 3, 4, 3, 2, 1.5, 1, 0.5, 0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("step,loss\n1,2\n", "lr"),
        ("step,lr,loss\n", "no rows"),
        ("step,lr,loss\n1,1e-4,x\n", "line 2"),
        ("step,lr,loss\n1,1e-4,2\n1,1e-4,2\n", "line 3"),
        ("step,lr,loss\n1,-1,2\n", "out of range"),
        ("step,lr,loss\n1,1e-4,0\n", "out of range"),
        ("step,lr,loss\n1,0,2\n", "above 0"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, said: str):
    with pytest.raises(BadInput, match=said):
        read_csv(write(tmp_path / "a.csv", text))


def write_run(folder: Path, records: list[dict]) -> Path:
    folder.mkdir()
    (folder / "records.jsonl").write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
    sources = [{"role": "domain", "sequences": 30}, {"role": "replay", "sequences": 10}]
    (folder / "plan.json").write_bytes(orjson.dumps({"blend": {"sources": sources}}))
    (folder / "lineage.json").write_bytes(
        orjson.dumps({"parent_forward_area": 5.0, "parent_annealing_area": None, "parent_final_learning_rate": 1e-5})
    )
    return folder


def mark(step: int, loss: float | None) -> dict:
    return {"kind": "validation", "step": step, "set": "general", "identity": "a", "loss": loss}


def test_a_run_folder_gives_the_rates_that_were_used(tmp_path: Path):
    steps = [{"kind": "train", "step": step, "learning_rate": step * 1e-4} for step in (1, 2, 3)]
    folder = write_run(tmp_path / "run", [mark(0, 3.0), *steps[:2], mark(2, None), steps[2], mark(3, 2.5)])
    curve = read_run(folder, "general")
    assert curve.rates.tolist() == pytest.approx([1e-4, 2e-4, 3e-4])
    assert (curve.steps.tolist(), curve.losses.tolist()) == ([3], [2.5])
    assert (curve.base_forward_area, curve.base_annealing_area, curve.base_final_rate) == (5.0, None, 1e-5)
    assert curve.domain_share == 0.75
    assert curve.start_loss == 3.0


def test_another_set_and_a_missing_rate_are_refused(tmp_path: Path):
    folder = write_run(tmp_path / "run", [{"kind": "train", "step": 1, "learning_rate": None}, mark(1, 3.0)])
    with pytest.raises(BadInput, match="general"):
        read_run(folder, "code")
    with pytest.raises(BadInput, match="learning rate"):
        read_run(folder, "general")


def test_tensorboard_scalars_give_a_curve(tmp_path: Path):
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(1, 9):
            writer.add_scalar("lr", 1e-3 * step, step)
        for step in (2, 4):
            writer.add_scalar("valid", 3.0 - step / 10, step)
    curve = read_tensorboard(tmp_path, "valid", "lr")
    assert curve.steps.tolist() == [2, 4] and curve.losses.tolist() == pytest.approx([2.8, 2.6])
    assert curve.rates.tolist() == pytest.approx([1e-3 * step for step in range(1, 9)])
    with pytest.raises(BadInput, match="valid"):
        read_tensorboard(tmp_path, "loss", "lr")
