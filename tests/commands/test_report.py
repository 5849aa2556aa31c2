"""`megatron-cpt report`."""

from pathlib import Path

import orjson
import pytest

from megatron_cpt.commands import report
from megatron_cpt.config.errors import BadInput
from tests.report.synthetic import write_run


def test_one_run_is_reported_in_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write_run(tmp_path / "naive", mitigated=False)
    assert report.main([str(folder)]) == 0
    assert (folder / "report.html").is_file() and (folder / "gap.json").is_file()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"report: {folder / 'report.html'}"
    assert printed[1].startswith("naive: general rose 0.55") and "not recovered; code gained 1.99" in printed[1]


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
