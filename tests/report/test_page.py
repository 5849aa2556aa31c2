"""The page: whole, self-contained, safe, and truthful about what is missing."""

import csv
import io
import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import orjson
import pytest

from megatron_cpt.report.page import report_page
from megatron_cpt.report.read import read_runs
from megatron_cpt.runs.records import read_records
from tests.report.synthetic import write_run

VOID = {"meta", "link", "br", "img", "line", "rect", "circle", "path", "use"}


class Balance(HTMLParser):
    """Checks that tags close in order, and gathers tags, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs")
    return report_page(read_runs([write_run(folder / "naive", False), write_run(folder / "mitigated", True)]))


def test_the_page_is_well_formed_and_has_every_section(page: str):
    parsed = Balance(page)
    assert parsed.open == []
    titles = (
        "Validation loss", "The first steps", "Gap figures", "Downstream tasks", "Training", "Plasticity and stability",
        "Mixture", "Speed", "Events", "Plan", "Configuration",
    )  # fmt: skip
    # Each once in the list of contents, which leads to it.
    assert re.findall(r'<li><a href="#([^"]*)">([^<]*)</a></li>', page) == re.findall(
        r'<h2 id="([^"]*)">([^<]*)</h2>', page
    )
    assert tuple(re.findall(r"<h2[^>]*>([^<]*)</h2>", page)) == titles
    assert "Without a section: <strong>Contamination</strong>: Nothing is known of it" in page
    # Loss, change, tasks and their group, training loss, rate and norm, signals, mixture and epochs, speed.
    assert page.count("<figure>") == 2 + 2 + 3 + 2 + 2 + 5 + 4 + 1


def test_the_page_loads_nothing_and_runs_its_own_script_alone(page: str):
    assert "http" not in page.replace("http-equiv", "")
    assert "default-src 'none'" in page
    parsed = Balance(page)
    assert not {name for name in parsed.attributes if name.startswith("on")}
    assert set(re.findall(r'(?:src|href)="([^"#]*)', page)) - {"", "data:,"} == set(csv_links(page))
    [script] = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert f"script-src 'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'\"" in page
    assert page.count("<script") == 1


def csv_links(page: str) -> list[str]:
    return re.findall(r'href="(data:text/csv;charset=utf-8,[^"]*)"', page)


def csv_rows(link: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(unquote(link.partition(",")[2]))))


def test_every_figure_has_its_points_as_csv(tmp_path: Path):
    folders = [write_run(tmp_path / 'na,i"ve', False), write_run(tmp_path / "mitigated", True)]
    page = report_page(read_runs(folders))
    links = csv_links(page)
    assert len(links) == page.count("<figure>")
    rows = csv_rows(links[0])
    expected, seconds = [], 0.0
    for folder in folders:
        seconds = 0.0
        for record in read_records(folder / "records.jsonl"):
            seconds += record.get("seconds") or 0.0
            if record.get("set") == "general" and record["kind"] == "validation":
                where = [folder.name, str(record["tokens"]), str(record["step"])]
                expected.append([*where, pytest.approx(record["loss"], rel=1e-5)])
    assert [[row["run"], row["tokens"], row["step"], float(row["loss"])] for row in rows] == expected
    assert float(rows[-1]["seconds"]) == pytest.approx(seconds, abs=4)  # after all that was measured at the last step


def test_figures_of_a_run_that_goes_on_counting_have_one_axis(tmp_path: Path):
    folder = write_run(tmp_path / "run", False)
    records = [
        record | {"step": record["step"] + 100, "tokens": record["tokens"] + 409_600, "baseline": record["step"] == 0}
        for record in read_records(folder / "records.jsonl")
    ]
    (folder / "records.jsonl").write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
    links = csv_links(report_page(read_runs([folder])))
    figures = [csv_rows(link) for link in links]
    losses = next(rows for rows in figures if "loss" in rows[0])
    rates = next(rows for rows in figures if "learning rate" in rows[0])
    assert [(row["tokens"], row["step"]) for row in losses[:2]] == [("0", "100"), ("4096", "101")]
    assert [(row["tokens"], row["step"]) for row in rates[:2]] == [("4096", "101"), ("8192", "102")]


def test_names_and_config_from_data_are_only_text(tmp_path: Path):
    name = "<img src=x onerror=alert(1)>"
    folder = write_run(tmp_path / "<i>run", True, names=(name, '"&amp;$'))
    (folder / "plan.json").write_bytes(orjson.dumps({name: [{name: name}], "b": {name: [name]}}))
    parsed = Balance(report_page(read_runs([folder])))
    assert parsed.open == []
    assert not {"img", "i"} & parsed.tags
    assert not {"onerror"} & parsed.attributes
    assert name in parsed.words and '"&amp;$' in parsed.words and "</details><script>" in parsed.words


@pytest.mark.ci
def test_runs_are_told_apart_by_settings_machine_and_hours(tmp_path: Path):
    folders = [write_run(tmp_path / "naive", False), write_run(tmp_path / "mitigated", True)]
    config = folders[1] / "config.yaml"
    config.write_text(
        config.read_text().replace("0.001", "0.00100000001").replace("runs/x", "runs/y")
        + "data: {replay: .3, phases: null}\n"
    )
    gpu = {"python": "3.12.1", "packages": {"torch": "2.13.0", "apex": None}, "machine": "Linux-6", "gpu": "NVIDIA <X>"}
    (folders[0] / "versions.json").write_bytes(orjson.dumps(gpu))
    (folders[0] / "plan.json").write_text('{"world_size": 64}')
    times = ("2026-11-29T03:51:02+00:00", "2026-12-01T00:00:07+00:00")
    (folders[0] / "log.txt").write_text(f"{times[0]} starting\n{times[1]} done\nmore words\n")
    page = report_page(read_runs(folders))
    machines = page.split(">Machines</h2>")[1].split("</section>")[0]
    naive, mitigated = (re.sub(r"<[^>]+>", " ", row) for row in machines.split("<tr>")[2:])
    seconds = sum(record.get("seconds") or 0 for record in read_records(folders[0] / "records.jsonl"))
    assert naive.split() == [
        "naive", *times[0].split("T"), *times[1].split("T"), "64", f"{64 * seconds / 3600:.3g}",
        "NVIDIA", "&lt;X&gt;", "Linux-6", "python", "3.12.1,", "torch", "2.13.0",
    ]  # fmt: skip
    assert mitigated.count("not recorded") == 5
    settings = page.split("Settings that differ")[1].split("</table>")[0]
    assert [re.sub(r"<[^>]+>", " ", row).split() for row in settings.split("<tr>")[1:]] == [
        ["Setting", "naive", "mitigated"],
        ["schedule.peak_lr", "0.001", "0.00100000001"],
        ["data.replay", "not", "set", "0.3"],
    ]
    config.write_text((folders[0] / "config.yaml").read_text().replace("runs/x", "runs/y"))
    assert "The configurations differ in nothing but the folder." in report_page(read_runs(folders))


def test_what_is_missing_is_shown_as_missing(tmp_path: Path):
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "records.jsonl").write_text('{"kind":"train","step":1,"tokens":10,"loss":4.0}\n')
    page = report_page(read_runs([folder]))
    assert Balance(page).open == []
    assert "No validation set was evaluated." in page
    assert page.count("not recorded") >= 4  # state, sources, plan, config
    for missing in ("No task was scored", "Neither was recorded", "No times were recorded", "None was recorded"):
        assert missing in page.split("<nav")[1].split("</nav>")[0]
        assert page.count(missing) == 1


def test_a_page_that_is_watched_asks_to_be_loaded_again(tmp_path: Path):
    runs = read_runs([write_run(tmp_path / "run", True)])
    assert '<meta http-equiv="refresh" content="30">' in report_page(runs, refresh_seconds=30)
    assert 'http-equiv="refresh"' not in report_page(runs)


def test_a_set_with_other_sequences_in_another_run_is_named(tmp_path: Path):
    naive, mitigated = write_run(tmp_path / "naive", False), write_run(tmp_path / "mitigated", True)
    records = mitigated / "records.jsonl"
    records.write_text(records.read_text().replace("identity of general", "others"))
    assert "not comparable between runs: general." in report_page(read_runs([naive, mitigated]))


def test_many_long_runs_stay_under_2_megabytes(tmp_path: Path):
    sources = [f"source {index}" for index in range(40)]
    noise = np.random.default_rng(0)
    lines = [
        orjson.dumps({
            "kind": "train", "step": step, "tokens": step * 1000, "loss": 4 + noise.random(),
            "learning_rate": 1e-3, "grad_norm": noise.random(),
            "source_losses": dict.fromkeys(sources, 4 + noise.random()),
            "source_tokens": dict.fromkeys(sources, step * 25),
            "source_epochs": dict.fromkeys(sources, step / 100),
        })
        for step in range(1, 3001)
    ]  # fmt: skip
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "records.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    page = report_page(read_runs([tmp_path / name for name in "abc"]))
    assert len(page.encode()) < 2_000_000
    assert "33 other sources" in page
