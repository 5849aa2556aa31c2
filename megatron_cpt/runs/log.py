"""What a person reads while a run goes on: lines in RUN/log.txt and a progress bar on the terminal."""

import os
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from megatron_cpt.runs.durable import named_errors
from megatron_cpt.runs.records import Record


@dataclass(frozen=True)
class RunLog:
    """A text file to which lines are appended, each with the time."""

    path: Path

    def write(self, text: str) -> None:
        """Appends a text; every line of it gets the local time and its offset."""
        moment = datetime.now().astimezone().isoformat(timespec="seconds")
        with named_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.writelines(f"{moment} {line}\n" for line in text.splitlines())


def progress_line(record: Record, total_steps: int, total_tokens: int | None = None) -> str:
    """One line for a `train` record: how far the run is, how it learns, and the time that is left.

    Args:
        total_tokens: of the run; None: its steps are all of one size.
    """
    step, tokens, speed = record["step"], record["tokens"], record["tokens_per_second"]
    total_tokens = total_tokens or tokens // step * total_steps
    parts = [
        f"step {step}/{total_steps}",
        f"{short_count(tokens)} of {short_count(total_tokens)} tokens",
        f"loss {record['loss']:.4f}",
        f"lr {record['learning_rate']:.2e}",
        f"grad norm {record['grad_norm']:.2f}",
        f"{speed:,.0f} tokens/s",
        *([f"MFU {record['mfu']:.1%}"] if record.get("mfu") is not None else []),
        *([f"{record['memory_bytes'] / 2**30:.1f} GiB"] if record.get("memory_bytes") else []),
        f"{short_time((total_tokens - tokens) / speed)} left",
    ]
    return " | ".join(parts)


def short_count(count: int) -> str:
    """Three significant digits and a suffix: `999`, `1.23K`, `45.6M`, `5.00B`."""
    if count < 1000:
        return str(count)
    rounded = round(count, 3 - len(str(count)))
    thousands, extra_digits = divmod(len(str(rounded)) - 1, 3)
    return f"{rounded / 1000**thousands:.{2 - extra_digits}f}{'KMBTPE'[thousands - 1]}"


def short_time(seconds: float) -> str:
    """The two largest units: `3 d 4 h`, `2 h 05 min`, `1 min 09 s`, `42 s`."""
    minutes, left_seconds = divmod(round(seconds), 60)
    hours, left_minutes = divmod(minutes, 60)
    days, left_hours = divmod(hours, 24)
    if days:
        return f"{days} d {left_hours} h"
    if hours:
        return f"{hours} h {left_minutes:02} min"
    return f"{minutes} min {left_seconds:02} s" if minutes else f"{left_seconds} s"


def progress_bar(total: int, unit: str, initial: int = 0, asked: bool = False) -> Any:
    """A tqdm bar on standard error: shown where that is a terminal, or where it is asked for."""
    shown = asked or sys.stderr.isatty()
    # Some terminals (those of CI and `script`) have no size; tqdm would draw nothing.
    sized = shown and sys.stderr.isatty() and min(os.get_terminal_size(sys.stderr.fileno())) > 0
    size = {"dynamic_ncols": True} if sized else {"ncols": 100, "nrows": 24}
    return tqdm(total=total, initial=initial, unit=unit, file=sys.stderr, disable=not shown, **size)
