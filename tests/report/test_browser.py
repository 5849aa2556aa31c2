"""The report in a real browser: it loads, it draws, and its console says nothing."""

import shutil
import subprocess
from pathlib import Path

import pytest

from megatron_cpt.report.page import report_page
from megatron_cpt.report.read import compare, read_runs
from tests.report.synthetic import write_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no chromium on this machine")


def load(page: Path, profile: Path, size: str) -> tuple[str, list[str]]:
    """The page's document after loading, and the lines of its console."""
    assert BROWSER is not None
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--enable-logging=stderr", "--virtual-time-budget=2000", f"--user-data-dir={profile}",
        f"--window-size={size}", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


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
    assert "<h2>Re-warming and shift</h2>" in document and document.count("<svg") > 8


def test_what_the_console_says_is_heard(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<!DOCTYPE html><title>bad</title><script>undefined_name()</script>")
    _, console = load(page, tmp_path / "profile", "800,600")
    assert len(console) == 1 and "undefined_name" in console[0]
