"""Runs the tests of the reliability rows, and writes what became of them to docs/reliability.md.

    python -m tests.reliability.battery            all rows, the long forms too
    python -m tests.reliability.battery P1 P2 S*   some rows; the others keep what was found before
    python -m tests.reliability.battery --page     writes the page alone

What was found is kept in results.json beside this file. A test says what it tried by `record_property("kills", 50)`.
"""

import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.rows import GROUPS, ROWS, SYSTEMS

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
PAGE = ROOT / "docs/reliability.md"


@dataclass
class Result:
    """What became of a row."""

    passed: int = 0
    """Tests, each parameter counted."""
    failed: list[str] = field(default_factory=list)
    """Names of those that failed."""
    skipped: list[str] = field(default_factory=list)
    """Why tests were left out."""
    tried: dict[str, int] = field(default_factory=dict)
    """What the tests counted: kills, flips, ..."""
    date: str = ""
    """Day, UTC."""
    commit: str = ""
    """The first 8 digits; `+` where files were changed."""


def own_tests() -> dict[str, list[str]]:
    """The tests of this folder by the row in their name, as FILE::TEST below tests/."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(HERE.glob("test_*.py")):
        for row, name in re.findall(r"^def test_([PDCRFS]\d+)_(\w+)\(", path.read_text(), re.MULTILINE):
            found[row].append(f"{HERE.name}/{path.name}::test_{row}_{name}")
    return found


def rows_with_tests() -> dict[str, list[str]]:
    """Every row with its tests, those of this folder last."""
    own = own_tests()
    return {name: [*row.tests, *own.get(name, [])] for name, row in ROWS.items()}


class _Recorder:
    """Takes note of every test's end."""

    def __init__(self, rows: dict[str, list[str]]) -> None:
        self.results = {name: Result() for name in rows}
        self._rows: dict[str, list[str]] = defaultdict(list)
        for name, tests in rows.items():
            for test in tests:
                self._rows[test].append(name)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test's setup, call or end was done."""
        if report.when != "call" and report.passed:
            return
        test = report.nodeid.removeprefix("tests/").split("[")[0]
        for name in self._rows.get(test, []):
            result = self.results[name]
            if report.passed:
                result.passed += 1
                result.tried = _summed([result.tried, {key: int(str(n)) for key, n in report.user_properties}])
            elif report.skipped:
                reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
                result.skipped.append(reason.removeprefix("Skipped: "))
            else:
                result.failed.append(report.nodeid.removeprefix("tests/"))


def _summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """All counts together; what was counted and never seen stays, as 0."""
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)


def run(names: list[str]) -> int:
    """Runs the tests of rows and keeps what became of them. Returns pytest's exit code."""
    rows = {name: tests for name, tests in rows_with_tests().items() if name in names and tests}
    recorder = _Recorder(rows)
    tests = dict.fromkeys(f"tests/{test}" for found in rows.values() for test in found)
    # Fifteen kills take longer than the suite gives to a test.
    options = ["-m", "", "-p", "no:cacheprovider", "-o", "timeout=1800"]
    code = int(pytest.main([*options, *tests], plugins=[recorder]))
    kept = read_results()
    for name, result in recorder.results.items():
        result.date, result.commit = f"{datetime.now(UTC):%Y-%m-%d}", _commit()
        kept[name] = result
    ordered = {name: asdict(kept[name]) for name in ROWS if name in kept}
    RESULTS.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")
    return code


def read_results() -> dict[str, Result]:
    """What became of the rows when they were last run."""
    return {name: Result(**result) for name, result in json.loads(RESULTS.read_text()).items()}


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "megatron_cpt", "tests", f":!{RESULTS.relative_to(ROOT)}")
    return git("rev-parse", "HEAD")[:8] + ("+" if changed else "")


def state_of(name: str, result: Result | None) -> str:
    """The word of the table for a row."""
    reason = ROWS[name].absent
    if reason is not None:
        return f"not to be had here: {reason}"
    if result is None:
        return "not run yet"
    if not (result.passed or result.failed):
        return f"open: {result.skipped[0]}" if result.skipped else "open"
    if result.failed:
        return f"open: {len(result.failed)} of {result.passed + len(result.failed)} tests fail"
    return f"passed, but for {len(result.skipped)}: {result.skipped[0]}" if result.skipped else "passed"


def page() -> str:
    """docs/reliability.md."""
    results = read_results()
    states = {name: state_of(name, results.get(name)) for name in ROWS}
    passed = sum(state.startswith("passed") for state in states.values())
    absent = sum(state.startswith("not to be had") for state in states.values())
    waiting = sum(state == "not run yet" for state in states.values())
    totals = _summed(result.tried for result in results.values())
    lines = [
        _HEAD.format(
            rows=len(ROWS),
            passed=passed,
            absent=absent,
            waiting=waiting,
            open=len(ROWS) - passed - absent - waiting,
            tests=sum(result.passed for result in results.values()),
            totals="\n".join(f"| {what} | {count:,} |" for what, count in sorted(totals.items())),
        )
    ]
    for letter, group in GROUPS.items():
        lines += [f"\n## {group}\n", "| id | what is tried | counts | result | date, commit | other systems |"]
        lines.append("|---|---|---|---|---|---|")
        for name in (name for name in ROWS if name[0] == letter):
            lines.append(_line(name, results.get(name), states[name]))
    lines.append(_SOURCES)
    lines += [f"| {name} | {where} | {commit} |" for name, where, commit in SYSTEMS]
    return "\n".join(lines) + "\n"


def _line(name: str, result: Result | None, state: str) -> str:
    row = ROWS[name]
    counts = (
        [] if result is None else [f"{result.passed} tests", *(f"{n:,} {what}" for what, n in result.tried.items())]
    )
    when = "" if result is None else f"{result.date}, {result.commit}"
    cells: list[Any] = [name, row.check, ", ".join(counts), state, when, row.others or "not looked at"]
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


_HEAD = """# Reliability

{rows} checks of what may not happen: nothing lost, nothing mixed, nobody waits for ever. `make battery` runs them and
writes this page; [tests/reliability](../tests/reliability) holds the tests, and names those of other folders.

{passed} passed, {absent} not to be had here, {open} open, {waiting} not run yet; {tests} tests. A row that was not run
yet has tests, whose quick forms CI runs. Tried in all:

| what | how many |
|---|---:|
{totals}

What this does not prove:

- `kill -9` leaves what the system has taken in memory. It does not prove what a loss of power leaves. Files are synced
  before they get their names, but no test here reorders writes.
- Ranks are processes with gloo on CPUs. NCCL, GPUs and their memory, networks between machines and parallel file
  systems were not tried.
- No failure in n tries bounds the rate of failures below 3/n (95 %), for what was tried."""

_SOURCES = """
## Other systems

The column `other systems` says what their code did on the same check, at the commits below: `run` means that it was run
without a GPU, `code`, `documented`, `thread` and `log` that it was read there. It is about these commits and these
inputs. Please report errors.

| system | where | commit or release |
|---|---|---|"""


def main(words: list[str]) -> int:
    """Runs what the words name, and writes the page."""
    code = 0
    if words != ["--page"]:
        names = [name for name in ROWS if not words or any(fnmatchcase(name, word) for word in words)]
        code = run(names)
    PAGE.write_text(page())
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
