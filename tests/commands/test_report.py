"""`megatron-cpt report`."""

import re
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
