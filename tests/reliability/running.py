"""Commands as a user runs them, each under an outer limit, and killed or short of room at a chosen place."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FAILPOINTS = Path(__file__).parent / "failpoints"
DISPATCH = [sys.executable, "-m", "megatron_cpt.commands.dispatch"]


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    """Exit code; the negative number of the signal that killed it."""
    out: str
    """Standard output."""
    err: str
    """Standard error."""
    seconds: float
    """Wall time."""


def started(
    words: Sequence[str | Path],
    failpoint: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> "subprocess.Popen[str]":
    """Starts a program in a session of its own; `failpoint` as failpoints/sitecustomize.py takes it."""
    known = {**os.environ, **(environment or {})}
    known["PYTHONPATH"] = os.pathsep.join([str(ROOT), *known.get("PYTHONPATH", "").split(os.pathsep)])
    if failpoint is not None:
        known["PYTHONPATH"] = f"{FAILPOINTS}{os.pathsep}{known['PYTHONPATH']}"
        known["FAILPOINT"] = json.dumps(
            {name: value if isinstance(value, int) else str(value) for name, value in failpoint.items()}
        )
    pipe = subprocess.PIPE
    return subprocess.Popen(
        list(map(str, words)), stdout=pipe, stderr=pipe, text=True, env=known, cwd=cwd, start_new_session=True
    )


def ended(process: "subprocess.Popen[str]", limit: float = 120) -> Ended:
    """Waits for a program's end. One that takes longer than the limit, in seconds, is a failure of the test."""
    begun = time.monotonic()
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"did not end within {limit} s: {process.args}\n{out}\n{err}") from None
    return Ended(process.returncode, out, err, time.monotonic() - begun)


def run(words: Sequence[str | Path], limit: float = 120, **options: Any) -> Ended:
    """Runs a program to its end; options as `started` takes them."""
    return ended(started(words, **options), limit)


def command(*words: str | Path, limit: float = 120, **options: Any) -> Ended:
    """Runs `megatron-cpt WORDS`."""
    return run([*DISPATCH, *words], limit, **options)


def places(words: Sequence[str | Path], folder: Path, log: Path, **options: Any) -> list[str]:
    """Runs a program that must succeed, and returns the places that its busiest process passed, in their order."""
    done = run(words, failpoint={"folder": folder, "log": log}, **options)
    assert done.code == 0, done.err
    passed: dict[str, list[str]] = {}
    for line in log.read_text().splitlines():
        pid, place = line.split(" ", 1)
        passed.setdefault(pid, []).append(place)
    return max(passed.values(), key=len)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
