"""The section on contamination: what overlaps is named, what was not compared is shown so."""

from pathlib import Path

import orjson
import pytest

from megatron_cpt.commands import report
from megatron_cpt.report.html import Section
from megatron_cpt.report.read import read_runs
from megatron_cpt.report.sections import contamination_section
from tests.report.synthetic import write_run
from tests.report.test_page import Balance

ROW = {
    "source": "<b>law", "kind": "task", "name": "medqa", "datasets": 2, "compared": 2, "items": 1273,
    "items_kept": 31, "documents_kept": 44, "documents_left_out": 0,
}  # fmt: skip
CLEAN = ROW | {"name": "piqa", "compared": 1, "items_kept": 0, "documents_kept": 0, "documents_left_out": 5}
UNKNOWN = ROW | {"name": "copa", "compared": 0, "items": None, "items_kept": None, "documents_kept": None}


def section_of(folder: Path, plan: dict) -> Section:
    (write_run(folder, True) / "plan.json").write_bytes(orjson.dumps(plan))
    return contamination_section(read_runs([folder]))


def test_overlaps_are_counted_and_named(tmp_path: Path) -> None:
    page = section_of(tmp_path / "run", {"contamination": [ROW, CLEAN, UNKNOWN]}).content
    parsed = Balance(page)
    assert parsed.open == [] and "b" not in parsed.tags
    assert "run trains on documents that overlap medqa." in page and "overlap medqa," not in page
    assert "<td>31 of 1,273</td><td>44</td><td>0</td>" in page
    assert "0 of 1,273<small>1 of 2 datasets compared</small></td><td>0</td><td>5</td>" in page
    assert "task copa</td><td colspan='3' class='words'><span class='missing'>not compared" in page


def test_the_terminal_names_overlaps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "records.jsonl").write_text('{"kind":"train","step":1,"tokens":10,"loss":4.0}\n')
    (folder / "plan.json").write_bytes(orjson.dumps({"contamination": [ROW, CLEAN]}))
    assert report.main([str(folder)]) == 0
    assert "note: run: trained on documents that overlap medqa. " in capsys.readouterr().out


def test_a_run_of_which_nothing_is_known_says_so(tmp_path: Path) -> None:
    for number, plan in enumerate(({}, {"contamination": []}, {"contamination": "x"}, {"contamination": [UNKNOWN]})):
        shown = section_of(tmp_path / str(number), plan)
        assert "Nothing is known of it" in shown.missing and not shown.content
