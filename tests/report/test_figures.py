"""What the loss figures show."""

from pathlib import Path

from matplotlib.figure import Figure

from megatron_cpt.report.figures import change_figure, curves_by_set, drawing, loss_figure, set_title, write_headline
from megatron_cpt.report.read import read_runs
from tests.report.synthetic import write_run


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_the_peaks_of_both_runs_are_labelled_with_their_height(tmp_path: Path):
    runs = read_runs([write_run(tmp_path / "naive", False), write_run(tmp_path / "mitigated", True)])
    by_set = curves_by_set([run.validation for run in runs])
    assert list(by_set) == [("general", "general"), ("domain", "code")]
    with drawing():
        assert texts(loss_figure(by_set["general", "general"])) == ["+0.55", "+0.16"]
        assert texts(loss_figure(by_set["domain", "code"])) == []
        change = change_figure(by_set["general", "general"])
    assert change is not None and change.axes[0].get_xscale() == "log"


def test_without_a_baseline_there_is_no_change_to_draw(tmp_path: Path):
    folder = write_run(tmp_path / "naive", False)
    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    (folder / "records.jsonl").write_text("".join(line for line in lines if '"step":0,' not in line))
    curves = curves_by_set([run.validation for run in read_runs([folder])])["general", "general"]
    with drawing():
        assert change_figure(curves) is None
        assert texts(loss_figure(curves)) == []


def test_the_headline_is_a_png_whatever_the_names(tmp_path: Path):
    runs = read_runs([write_run(tmp_path / "_$a_{$", False, names=("$x^", "c$o$de"))])
    write_headline(runs, tmp_path / "headline.png")
    assert (tmp_path / "headline.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_title_does_not_say_the_same_twice():
    assert set_title("general", "general") == "General text"
    assert set_title("general", "history") == "General text: history"
    assert set_title("domain", "code") == "Domain text: code"
