import io
import logging
import re
import sys
from pathlib import Path

import pytest

from megatron_cpt.runs.records import OURS, RemainingTime, RunLog, progress_bar, progress_line, short_time

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
    assert progress_line(RECORD, 250, 1_024_000, 100.2) == (
        "step 50/250 | 205K of 1.02M tokens | loss 4.8912 | lr 9.50e-04 | grad norm 0.83"
        " | 8,192 tokens/s | 1 min 40 s left"
    )


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


def test_lines_of_ranks_other_than_0_say_whose_they_are(tmp_path: Path) -> None:
    for rank in (0, 3):
        log = RunLog(tmp_path / "log.txt", rank)
        log.write("odd", logging.WARNING)
        log.close()
    zero, third = (line.partition(" ")[2] for line in (tmp_path / "log.txt").read_text().splitlines())
    assert (zero, third) == ("warning: odd", "[rank3] warning: odd")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_warnings_and_the_end_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stdout, seen in ((io.StringIO(), ["step 1", "warning: odd", "done"]), (Terminal(), ["warning: odd", "done"])):
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "stderr", Terminal())
        log = RunLog(tmp_path / "log.txt")
        log.write("step 1")
        log.write("odd", logging.WARNING)
        log.write("done", shown=True)
        log.close()
        assert [
            line.removeprefix(line.partition(" ")[0] + " ") if line[:2] == "20" else line
            for line in stdout.getvalue().splitlines()
        ] == seen
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 6
    assert not any(handler.get_name() == OURS for handler in logging.getLogger("megatron_cpt").handlers)


def test_the_time_left_counts_all_kinds_of_work() -> None:
    remaining = RemainingTime()
    assert remaining.seconds({"tokens": 100, "saves": 2}) == 0
    remaining.add("tokens", 1000, 10)
    remaining.add("saves", 1, 3)
    assert remaining.seconds({"tokens": 500, "saves": 2, "exports": 9}) == pytest.approx(5 + 6)
    # What was done last counts most: 0.8 of a first step of 10 s, and one of 1 s.
    remaining.add("tokens", 1000, 1)
    assert remaining.seconds({"tokens": 1800}) == pytest.approx(9)


def test_a_bar_is_shown_only_on_a_terminal_or_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for asked in (False, True):
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        with progress_bar(total=10, unit="step", initial=3, asked=asked) as bar:
            bar.update(2)
        shown = sys.stderr.getvalue()
        assert ("5/10" in shown) == asked
