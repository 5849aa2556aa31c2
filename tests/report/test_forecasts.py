"""The report of a run that goes on says where it is going, and of a run that is done nothing."""

from pathlib import Path

import numpy as np
import orjson
import pytest
import yaml

from megatron_cpt.commands import law as law_command
from megatron_cpt.commands import report
from megatron_cpt.config.load import load_config
from megatron_cpt.config.schedule import learning_rate
from megatron_cpt.report.page import report_page
from megatron_cpt.report.read import read_runs
from megatron_cpt.report.sections import forecast_line, forecasts_of
from megatron_cpt.runs.folder import Status, write_status
from megatron_cpt.runs.records import RecordWriter
from tests.report.test_page import csv_links, csv_rows

STEPS, STEP_TOKENS = 400, 1024
CONFIG = {
    "run": {"folder": "x"},
    "model": {"hf": "base"},
    "data": {"sequence_length": 128, "sources": {"code": {"paths": ["data/code"]}}},
    "training": {"tokens": f"{STEPS} steps", "global_batch_size": 8, "micro_batch_size": 8},
    "schedule": {"kind": "cosine", "peak_lr": 2e-3, "final_lr": 2e-4, "warmup": "20 steps"},
    "validation": {"sets": {"general": {"paths": ["data/general"], "role": "general"}}},
}


def loss(step: int) -> float:
    return 4.2 + 0.3 * (1 - np.exp(-step / 30)) - 0.15 * step / STEPS


def running(folder: Path, done: int, state: str = "running") -> Path:
    """A run of which so many updates are done."""
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    plan = {"steps": STEPS, "tokens": STEPS * STEP_TOKENS, "tokens_per_step": STEP_TOKENS}
    (folder / "plan.json").write_bytes(orjson.dumps(plan))
    lineage = {"parent_forward_area": 2.0, "parent_annealing_area": 0.1, "parent_final_learning_rate": 1e-4}
    (folder / "lineage.json").write_bytes(orjson.dumps(lineage | {"parent_peak_learning_rate": 1e-3}))
    schedule = load_config(folder / "config.yaml").schedule
    writer, noise = RecordWriter(folder / "records.jsonl"), np.random.default_rng(1)
    for step in range(done + 1):
        tokens = step * STEP_TOKENS
        if step:
            rate = learning_rate(schedule, tokens, STEPS * STEP_TOKENS, STEP_TOKENS)
            train = {"kind": "train", "step": step, "tokens": tokens, "learning_rate": rate, "loss": 4.0}
            writer.append(train | {"source_losses": {}, "source_tokens": {}, "source_epochs": {}})
        if step % 10 == 0:
            writer.append({
                "kind": "validation", "step": step, "tokens": tokens, "set": "general", "role": "general",
                "loss": loss(step) + noise.normal(0, 0.003), "bits_per_byte": None, "scored_tokens": 1000,
                "scored_bytes": None, "identity": "g", "seconds": 0.1,
            })  # fmt: skip
    writer.close()
    write_status(
        folder / "status.json", Status(state, None if state == "running" else 0, None, done, done * STEP_TOKENS)
    )
    return folder


def test_a_run_that_goes_on_is_forecast_in_the_report(tmp_path: Path):
    runs = read_runs([running(tmp_path / "half", 240)])
    found = forecasts_of(runs, {})
    ((curve, ahead),) = found["half"]
    assert len(curve.rates) == STEPS and curve.rates[-1] == pytest.approx(2e-4)
    assert ahead.exists and ahead.low[-1] <= loss(STEPS) <= ahead.high[-1]
    page = report_page(runs, forecasts=found)
    assert ">Forecast</h2>" in page and "extrapolates from 240 of 400 updates" in page
    rows = csv_rows(csv_links(page.split(">Forecast</h2>")[1])[0])
    assert list(rows[0]) == ["run", "step", "measured", "forecast", "2.5 %", "97.5 %"]
    assert rows[-1]["step"] == str(STEPS) and float(rows[-1]["forecast"]) == pytest.approx(ahead.middle[-1], rel=1e-5)
    assert float(rows[0]["measured"]) == pytest.approx(curve.losses[0], rel=1e-5)
    assert f"{ahead.middle[-1]:.4f}" in page and f"{ahead.middle[-1]:.4f}" in forecast_line(curve, ahead)


def test_too_early_is_said_and_a_run_that_is_done_has_no_forecast(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    early = running(tmp_path / "early", 60)
    done = running(tmp_path / "done", STEPS, "done")
    report.main([str(early)])
    assert "too early" in (early / "report.html").read_text()
    assert "forecast of general: no forecast, too early" in capsys.readouterr().out
    report.main([str(done)])
    assert ">Forecast</h2>" not in (done / "report.html").read_text()
    # A law that was given, and of which nothing comes, is not passed over without a word.
    (tmp_path / "curve.csv").write_text(
        "step,lr,loss\n" + "".join(f"{step},1e-3,{3 + step**-0.5}\n" for step in range(1, 60))
    )
    law = str(tmp_path / "law.json")
    words = ["--fix", "gain=0.1", "--draws", "0", "--output", law, "--html", str(tmp_path / "law.html")]
    law_command.main(["fit", str(tmp_path / "curve.csv"), "--law", "annealing", *words])
    capsys.readouterr()
    report.main([str(early), str(done), "--law", law, "--output", str(tmp_path / "both")])
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert notes[0].startswith("note: forecast of early: set general is not in the law, which has loss")
    assert notes[1].startswith("note: no forecast of done: ") and "is at its end" in notes[1]
