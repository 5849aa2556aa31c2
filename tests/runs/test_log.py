import io
import re
import sys
from pathlib import Path

import pytest

from megatron_cpt.runs.log import RunLog, progress_bar, progress_line, short_count, short_time

RECORD = {
    "kind": "train",
    "step": 50,
    "tokens": 204_800,
    "learning_rate": 9.5e-4,
    "loss": 4.89123,
    "grad_norm": 0.826,
    "tokens_per_second": 8192.4,
}


def test_the_line_a_person_reads() -> None:
    assert progress_line(RECORD, 250) == (
        "step 50/250 | 205K of 1.02M tokens | loss 4.8912 | lr 9.50e-04 | grad norm 0.83"
        " | 8,192 tokens/s | 1 min 40 s left"
    )
    assert progress_line(RECORD, 50).endswith("| 0 s left")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00K"),
        (1234, "1.23K"),
        (99_949, "99.9K"),
        (999_499, "999K"),
        (999_500, "1.00M"),
        (45_600_000, "45.6M"),
        (5 * 10**9, "5.00B"),
        (15 * 10**12, "15.0T"),
    ],
)
def test_counts_have_three_digits(count: int, text: str) -> None:
    assert short_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (42, "42 s"), (59.6, "1 min 00 s"), (69, "1 min 09 s"), (7500, "2 h 05 min"), (273_600, "3 d 4 h")],
)
def test_times_have_two_units(seconds: float, text: str) -> None:
    assert short_time(seconds) == text


def test_the_log_is_appended_with_the_time(tmp_path: Path) -> None:
    RunLog(tmp_path / "log.txt").write("started")
    RunLog(tmp_path / "log.txt").write("two\nlines")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d"
    assert all(
        re.fullmatch(f"{stamp} {text}", line) for line, text in zip(lines, ["started", "two", "lines"], strict=True)
    )


def test_a_bar_is_shown_only_on_a_terminal_or_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for asked in (False, True):
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        with progress_bar(total=10, unit="step", initial=3, asked=asked) as bar:
            bar.update(2)
        shown = sys.stderr.getvalue()
        assert ("5/10" in shown) == asked
