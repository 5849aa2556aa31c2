"""`megatron-cpt report`."""

import re
from collections.abc import Mapping
from pathlib import Path

import orjson
import pytest

from megatron_cpt.commands import report
from megatron_cpt.config.errors import BadInput
from megatron_cpt.runs.folder import RunFolder, Status, write_status
from tests.report.synthetic import write_run


def test_one_run_is_reported_in_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write_run(tmp_path / "naive", mitigated=False)
    assert report.main([str(folder)]) == 0
    assert (folder / "report.html").is_file() and (folder / "gap.json").is_file()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"report: {folder / 'report.html'}"
    assert printed[1].startswith("naive: general rose 0.55") and "; code gained 1.99" in printed[1]
    assert "not recovered, +0.55" in printed[1] and "at the end" in printed[1]
    # The card says what stays beside what was worst.
    card = (folder / "report.html").read_text().split('<div class="cards">')[1].split("</section>")[0]
    assert re.search(
        r'\+0\.55\d</span> nats per token at worst, <span class="figure-number">\+0\.55\d</span> at the end', card
    )


def test_a_general_set_that_improved_is_said_to_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    log = tmp_path / "old.csv"
    log.write_text("tokens,loss\n0,4.0\n100,3.5\n200,2.846\n")
    assert report.main([str(log), "--output", str(tmp_path / "out")]) == 0
    assert "general improved 1.154 nats, never rose above its baseline" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    assert "1.154</span> nats per token, better at the end; never rose above its baseline" in page
    assert "at worst" not in page.split('<div class="cards">')[1].split("</section>")[0]


def test_several_runs_are_compared_in_the_output_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folders = [write_run(tmp_path / "naive", False), write_run(tmp_path / "mitigated", True)]
    assert report.main([*map(str, folders), "--output", str(tmp_path / "out"), "--png"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.html", "gap.json", "report.png"}
    document = orjson.loads((tmp_path / "out" / "gap.json").read_bytes())
    naive, mitigated = document["runs"]
    assert (naive["name"], mitigated["name"]) == ("naive", "mitigated")
    assert naive["sets"]["general"]["recovery_tokens"] is None
    assert naive["sets"]["general"]["final"] == pytest.approx(0.55, abs=0.01)
    assert mitigated["sets"]["general"]["depth"] == pytest.approx(0.16, abs=0.01)
    assert mitigated["sets"]["general"]["recovery_tokens"] == 80 * 4096
    assert mitigated["sets"]["code"]["improvement"] == pytest.approx(1.893, abs=0.01)
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_folder_without_records_and_an_output_that_is_a_file_are_refused(tmp_path: Path):
    with pytest.raises(BadInput, match=r"records\.jsonl"):
        report.main([str(tmp_path)])
    folder = write_run(tmp_path / "naive", mitigated=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="--output"):
        report.main([str(folder), "--output", str(tmp_path / "file")])


@pytest.mark.ci
def test_seeds_are_averaged_and_the_control_splits_the_rise(tmp_path: Path):
    naive, mitigated, again = (
        write_run(tmp_path / name, mitigated) for name, mitigated in (("a", False), ("b", True), ("c", True))
    )
    naive_config = naive / "config.yaml"
    naive_config.write_text(naive_config.read_text().replace("0.001", "0.002"))
    (again / "config.yaml").write_text((again / "config.yaml").read_text().replace("1234", "7"))
    output = tmp_path / "out"
    assert report.main([str(naive), str(mitigated), str(again), "--output", str(output)]) == 0
    document = orjson.loads((output / "gap.json").read_bytes())
    assert [arm["runs"] for arm in document["arms"]] == [["a"], ["b", "c"]]
    assert document["arms"][1]["sets"]["general"]["figures"]["depth"]["runs"] == 2
    assert {item["figure"] for item in document["differences"]} == {"depth", "final", "transient", "area"}
    page = (output / "report.html").read_text()
    assert ">Arms over seeds</h2>" in page and ">Re-warming and shift</h2>" not in page

    # A report of other runs is not lost for it; one of the same and more is a later one.
    controlled = [str(naive), "--control", str(mitigated), "--output", str(output)]
    with pytest.raises(BadInput, match=r"gap\.json: is there already"):
        report.main(controlled)
    for name in ("report.html", "gap.json"):
        (output / name).unlink()
    assert report.main(controlled) == 0
    assert report.main(controlled) == 0
    document = orjson.loads((output / "gap.json").read_bytes())
    assert document["control"] == "b" and list(document["splits"]) == ["a"]
    split = document["splits"]["a"]["general"]
    assert split["final"]["rise"] - split["final"]["rewarming"] == pytest.approx(split["final"]["shift"])
    assert split["significant"] is True
    page = (output / "report.html").read_text()
    assert ">Re-warming and shift</h2>" in page and ">Arms over seeds</h2>" not in page


def test_a_log_of_another_system_beside_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    log = tmp_path / "old.csv"
    log.write_text("step,val <b>\n0,4.0\n100,4.5\n200,4.0\n300,4.0\n")
    words = [str(log), "--map", "general=val <b>", "--tokens-per-step", "1K", "--output", str(tmp_path / "out")]
    assert report.main(words) == 0
    assert "old.csv: general rose 0.500 nats at 100K tokens" in capsys.readouterr().out
    figures = orjson.loads((tmp_path / "out/gap.json").read_bytes())["runs"][0]["sets"]["general"]
    assert figures["significant"] is None and figures["depth_standard_error"] is None
    assert "<b>" not in (tmp_path / "out/report.html").read_text()
    assert report.main([*words, str(write_run(tmp_path / "naive", False))]) == 0
    with pytest.raises(BadInput, match="NAME=COLUMN"):
        report.main([str(log), "--map", "general"])


@pytest.mark.ci
def test_every_figure_is_exported(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", True, names=("general", "a/b <c>"))
    assert report.main([str(run), "--figures", str(tmp_path / "figures")]) == 0
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"loss-general.svg", "loss-general.png", "loss-a-b-c-.svg", "weight-update.png", "speed.svg"} <= names
    assert len(names) == 3 * 18
    rate = (tmp_path / "figures/learning-rate.csv").read_text().splitlines()
    assert rate[0] == "run,tokens,step,seconds,learning rate" and len(rate) == 1 + 256
    assert rate[12].startswith(f"run,{12 * 4096},12,") and rate[12].endswith(",0.00099463")


@pytest.mark.ci
def test_figures_of_names_that_look_alike_are_all_there(tmp_path: Path) -> None:
    runs = [str(write_run(tmp_path / "q" / name, True, ("General", "general"))) for name in ("a&b", "A-b")]
    output, figures = tmp_path / "out", tmp_path / "figures"
    assert report.main([*runs, "--output", str(output), "--figures", str(figures)]) == 0
    names = [path.name for path in figures.iterdir()]
    assert len({name.casefold() for name in names}) == len(names)
    for kind in ("training-loss", "mixture", "epochs"):
        of_files = {
            name: (figures / f"{kind}-{name}.csv").read_text().splitlines()[1].split(",")[0]
            for name in ("a-b", "A-b-2")
        }
        assert of_files == {"a-b": "a&b", "A-b-2": "A-b"}
    assert {"loss-General.csv", "loss-general-2.csv", "change-general-2.csv"} <= set(names)


def test_a_run_that_goes_on_has_no_end_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", False)
    for state, said, other in (("running", "so far", "at the end"), ("done", "at the end", "so far")):
        write_status(run / "status.json", Status(state, None, None, 5, 50))
        assert report.main([str(run)]) == 0
        card = (run / "report.html").read_text().split('<div class="cards">')[1].split("</section>")[0]
        for text in (capsys.readouterr().out, card):
            assert said in text and other not in text


def test_a_run_is_no_control_of_itself(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", True)
    with pytest.raises(BadInput, match=r"--control .*: is the run that is reported"):
        report.main([str(run), "--control", f"{run}/"])
    assert not (run / "report.html").exists()


@pytest.mark.ci
def test_a_watched_report_is_written_until_the_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", True)
    write_status(run / "status.json", Status("running", None, None, 5, 50))
    seen = []

    def ends_meanwhile(seconds: float) -> None:
        seen.append((seconds, 'http-equiv="refresh"' in (run / "report.html").read_text()))
        write_status(run / "status.json", Status("done", 0, None, 5, 50))

    monkeypatch.setattr("time.sleep", ends_meanwhile)
    assert report.main([str(run), "--watch", "7"]) == 0
    assert seen == [(7, True)]
    assert 'http-equiv="refresh"' not in (run / "report.html").read_text()


def test_a_watched_run_without_records_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = write_run(tmp_path / "whole", True)
    run = RunFolder(tmp_path / "run")
    run.create()  # as `train` leaves it before its processes have started
    steps = iter(
        (
            lambda: write_status(run.status, Status("running")),
            lambda: run.records.write_bytes(b'{"kind": "tr'),
            lambda: run.records.write_bytes((whole / "records.jsonl").read_bytes()),
            lambda: write_status(run.status, Status("done", 0, None, 5, 50)),
        )
    )
    monkeypatch.setattr("time.sleep", lambda _: next(steps)())
    assert report.main([str(run.path), "--watch", "7"]) == 0
    assert capsys.readouterr().out.count("waiting for the first record of") == 1
    assert run.report.exists() and next(steps, None) is None
    # A run that failed before its first record, and a folder that is no run, are not waited for.
    run.records.unlink()
    write_status(run.status, Status("failed", 2, "bad input"))
    for folder in (run.path, tmp_path):
        with pytest.raises(BadInput, match="is a run folder without records"):
            report.main([str(folder), "--watch", "7"])


Losses = Mapping[int, float | None]


def measured(
    folder: Path, sets: Mapping[str, Losses], identity: str = "", state: str = "done", peak: float = 1e-3
) -> str:
    """A run folder of validation losses by set and step, 100 tokens a step, 8 sequences of 10 tokens each."""
    folder.mkdir()
    lines = [{"kind": "train", "step": 1, "tokens": 100, "loss": 4.0, "learning_rate": peak}]
    for name, losses in sets.items():
        for step, loss in losses.items():
            nats = [None if loss is None else 10 * loss + place % 2 / 1e3 * step for place in range(8)]
            lines.append({
                "kind": "validation", "step": step, "tokens": 100 * step, "set": name, "role": "general",
                "identity": identity + name, "loss": loss, "sequence_nats": nats, "sequence_tokens": [10] * 8,
            })  # fmt: skip
    (folder / "records.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    write_status(folder / "status.json", Status(state, 0, None, 5, 500))
    return str(folder)


RISE = {0: 4.0, 1: 4.3, 2: 4.5, 3: 4.1, 4: 4.0, 5: 4.0}


def test_a_control_that_splits_nothing_is_refused_with_the_reason_and_nothing_is_written(tmp_path: Path) -> None:
    run = measured(tmp_path / "run", {"general": RISE, "code": RISE})
    others = measured(tmp_path / "others", {"general": RISE}, identity="other ")
    with pytest.raises(BadInput) as refused:
        report.main([run, "--control", others, "--output", str(tmp_path / "out")])
    assert [str(fault) for fault in refused.value.faults] == [
        f"--control {others}: set general of run cannot be split: other sequences in the control. Name a control with "
        "the same files, sequence length and tokenizer for the set.",
        f"--control {others}: set code of run cannot be split: not evaluated in the control. Give the control the same "
        "validation sets.",
    ]
    assert not (tmp_path / "out").exists()
    base = measured(tmp_path / "base", {"general": {step: loss + 0.2 for step, loss in RISE.items()}})
    with pytest.raises(BadInput, match=r"another model: .* is 4\.2\d* nats per token, not 4\.0\d*\. Name a control"):
        report.main([run, "--control", base, "--output", str(tmp_path / "out")])


def test_a_control_is_told_on_the_terminal_set_by_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = measured(tmp_path / "run", {"general": RISE, "code": RISE})
    low = {step: 4.0 + (loss - 4.0) / 5 for step, loss in RISE.items()}
    control = measured(tmp_path / "control", {"general": low}, peak=2e-3)
    assert report.main([run, "--control", control, "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[2].startswith("  beside control control: general rose 0.500 nats at 200 tokens: re-warming +0.100, ")
    assert printed[-2:] == [
        "note: control control: set code of run is not split: not evaluated in the control. Give the control the same "
        "validation sets.",
        "note: control control: its learning rate at 100 tokens is 0.002, that of run 0.001: its rise is not the "
        "re-warming of that run. Name a control with the same schedule.",
    ]
    # A control that is over and was evaluated once will split nothing, however long the run goes on.
    over = measured(tmp_path / "over", {"general": {0: 4.0}})
    write_status(Path(run) / "status.json", Status("running", None, None, 5, 500))
    with pytest.raises(BadInput, match="set general of run cannot be split: the control has no finite loss"):
        report.main([run, "--control", over, "--output", str(tmp_path / "over-report")])
    # What is still to come is waited for: the control goes on, and has no evaluation but the first.
    begun = measured(tmp_path / "begun", {"general": {0: 4.0}}, state="running")
    assert report.main([run, "--control", begun, "--output", str(tmp_path / "later")]) == 0
    assert "set general of run is not split: the control has no finite loss at the same" in capsys.readouterr().out


def test_a_control_that_fails_while_it_is_watched_leaves_a_last_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = measured(tmp_path / "run", {"general": RISE}, state="running")
    control = measured(tmp_path / "control", {"general": {0: 4.0}}, state="running")

    def both_end(_: float) -> None:
        for folder in (run, control):
            write_status(Path(folder) / "status.json", Status("done", 0, None, 5, 500))

    monkeypatch.setattr("time.sleep", both_end)
    assert report.main([run, "--control", control, "--watch", "7", "--output", str(tmp_path / "out")]) == 0
    assert "note: control control: set general of run is not split" in capsys.readouterr().out.splitlines()[-1]
    assert 'http-equiv="refresh"' not in (tmp_path / "out/report.html").read_text()


def test_runs_with_other_sequences_are_said_not_to_be_comparable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [measured(tmp_path / "a", {"general": RISE}), measured(tmp_path / "b", {"general": RISE}, identity="other ")]
    log = tmp_path / "old.csv"
    log.write_text("tokens,loss\n0,4.0\n100,4.5\n200,4.0\n")
    for seed, run in enumerate(runs):
        (Path(run) / "config.yaml").write_text(f"run: {{seed: {seed}}}\n")
    assert report.main([*runs, "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines()[3:] == [
        "note: set general: other sequences in b than in a: losses are not comparable between them. Compare runs that "
        "evaluated the same files with one sequence length and tokenizer.",
        "note: arm a + b: set general is not averaged: other sequences in b than in a. Report the arm without such "
        "runs, or once all have ended.",
    ]
    assert report.main([runs[0], str(log), "--output", str(tmp_path / "logs")]) == 0
    assert "not known whether old.csv and a evaluated the same sequences" in capsys.readouterr().out
    assert report.main([runs[0], "--output", str(tmp_path / "one")]) == 0
    assert "note:" not in capsys.readouterr().out


def test_a_loss_that_is_not_finite_is_named_by_its_step_and_leaves_the_other_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = measured(tmp_path / "run", {"general": RISE | {3: None}, "old": RISE | {5: None}, "new": RISE | {0: None}})
    assert report.main([run, "--figures", str(tmp_path / "figures")]) == 0
    line, *notes = capsys.readouterr().out.splitlines()[2:]
    assert line.split("; ") == [
        "run: general rose 0.500 nats at 200 tokens, 0.500 of it transient, recovered at 400 tokens, +0.000 at the end "
        "(not finite at step 3, not in these figures)",
        "old rose 0.500 nats at 200 tokens, its last loss is not finite (not finite at step 5, not in these figures)",
        "new has no baseline: the loss before the first update (step 0) is not finite",
    ]
    assert [note.split(". ")[0] for note in notes] == [
        "note: run: the loss of general is not finite at step 3; the metrics leave that out, and `area` is not given",
        "note: run: the loss of old is not finite at step 5; the metrics leave that out, and `area` is not given, nor "
        "what needs the last loss",
        "note: run: the loss of new is not finite at step 0",
    ]
    assert all("start from an earlier checkpoint" in note for note in notes)
    figures = orjson.loads((Path(run) / "gap.json").read_bytes())["runs"][0]["sets"]
    assert figures["general"]["depth"] == pytest.approx(0.5, abs=1e-3) and figures["general"]["area"] is None
    assert figures["general"]["not_finite"] == "step 3" and figures["old"]["final"] is None
    page = (Path(run) / "report.html").read_text()
    assert page.count("not finite at step 3, not in these figures") == 2 and ">nan<" not in page.lower()
