"""The report in a real browser: it loads, it draws, and its console says nothing."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from megatron_cpt.report.page import report_page
from megatron_cpt.report.read import compare, read_runs
from tests.report.synthetic import write_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no chromium on this machine")


def browse(page: Path, profile: Path, *words: str) -> tuple[str, list[str]]:
    """What the browser prints of a page, and the lines of its console."""
    assert BROWSER is not None
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr",
        "--virtual-time-budget=2000", f"--user-data-dir={profile}", *words, page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def load(page: Path, profile: Path, size: str) -> tuple[str, list[str]]:
    """The page's document after loading, and the lines of its console."""
    return browse(page, profile, f"--window-size={size}", "--dump-dom")


@pytest.mark.parametrize("size", ["1200,900", "420,900"])
def test_the_report_loads_without_a_word_in_the_console(tmp_path: Path, size: str) -> None:
    folders = [write_run(tmp_path / "naive", False), write_run(tmp_path / "mitigated", True)]
    again = write_run(tmp_path / "naive-2", False)
    (again / "config.yaml").write_text((again / "config.yaml").read_text().replace("1234", "7"))
    runs = read_runs([*folders, again])
    page = tmp_path / "report.html"
    page.write_text(report_page(runs, compare(runs, runs[1])))
    document, console = load(page, tmp_path / "profile", size)
    assert console == []
    assert ">Re-warming and shift</h2>" in document and document.count("<svg") > 8


def test_figures_are_drawn_over_steps_and_show_values(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / "naive", False), write_run(tmp_path / "mitigated", True)])
    acts = """<script>
      document.querySelectorAll(".axis button")[1].click();
      const svg = document.querySelector("svg[data-box]"), box = svg.getBoundingClientRect();
      const [left, , right] = svg.dataset.box.split(" ").map(Number);
      const x = box.left + ((left + right) / 2) * box.width / svg.viewBox.baseVal.width;
      svg.dispatchEvent(new PointerEvent("pointermove", { clientX: x, clientY: box.top + 9 }));
    </script></body>"""
    page = tmp_path / "report.html"
    # The test's own script needs a page that allows it.
    page.write_text(
        re.sub(r"script-src '[^']*'", "script-src 'unsafe-inline'", report_page(runs)).replace("</body>", acts)
    )
    document, console = load(page, tmp_path / "profile", "1200,900")
    assert console == []
    drawn = document.split("<figure>")[1].split("</figure>")[0]
    axis = drawn.split('<g data-axis="x">')[1].split("</g>")[0]
    assert re.findall(r">([^<>]+)</text>", axis) == ["steps", "0", "50", "100", "150", "200", "250"]
    tip = re.sub(r"<[^>]+>", " ", drawn.split('class="tip"')[1])
    losses = [run.validation[0][0].losses[run.validation[0][0].steps == 120].item() for run in runs]
    assert tip.split()[-6:] == ["steps", "120", "naive", f"{losses[0]:.4f}", "mitigated", f"{losses[1]:.4f}"]


def test_what_the_console_says_is_heard(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<!DOCTYPE html><title>bad</title><script>undefined_name()</script>")
    _, console = load(page, tmp_path / "profile", "800,600")
    assert len(console) == 1 and "undefined_name" in console[0]


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="there is no pdftotext on this machine")
def test_paper_has_every_column_and_what_the_screen_folds(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a-run-with-a-long-name", False)
    (folder / "plan.json").write_text('{"world_size": 77777}')
    page = tmp_path / "report.html"
    page.write_text(report_page(read_runs([folder])))
    browse(page, tmp_path / "profile", f"--print-to-pdf={tmp_path / 'page.pdf'}")
    done = subprocess.run(["pdftotext", "-layout", tmp_path / "page.pdf", "-"], capture_output=True, text=True)
    table = done.stdout.split("Gap figures")[-1].split("Training")[0]
    for words in ("Baseline", "reached", "of it", "First rise", "End minus", "Recovered", "Area of", "Significant"):
        assert words in table
    assert "p ≤ 0.0005" in table
    assert "77,777" in done.stdout and "peak_lr: 0.001" in done.stdout
