"""What a person reads while a run goes on: log lines, and a progress bar on a terminal.

The lines go through Python's logging under the name `megatron_cpt`: all of them into RUN/log.txt, and to standard
output where that or standard error is no terminal, as under Slurm and Kubernetes. A terminal shows the bar and, above
it, warnings and where the run ends.
"""

import logging
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from megatron_cpt.runs.durable import named_errors
from megatron_cpt.runs.records import Record

LOGGER = logging.getLogger("megatron_cpt")
OURS = "megatron_cpt run"
"""Name of the handlers of a run that is open."""


class RunLog:
    """The log of the run that this process trains. Opening one closes what another has left open."""

    def __init__(self, path: Path) -> None:
        self.close()
        self._path = path
        with named_errors(path):
            file = _FileHandler(path, encoding="utf-8")
        file.setFormatter(_Stamped())
        shown: logging.Handler
        if sys.stdout.isatty() and sys.stderr.isatty():
            shown = _AboveBar()
            shown.addFilter(lambda record: record.levelno >= logging.WARNING or getattr(record, "shown", False))
        else:
            shown = _OutputHandler(sys.stdout)
            shown.setFormatter(_Stamped())
        for handler in (file, shown):
            handler.set_name(OURS)
            LOGGER.addHandler(handler)
        LOGGER.setLevel(logging.INFO)
        LOGGER.propagate = False

    def write(self, text: str, level: int = logging.INFO, shown: bool = False) -> None:
        """Writes a text; every line of it gets the local time and its offset, and a warning says that it is one.

        Args:
            shown: a terminal shows it too, above the bar.
        """
        with named_errors(self._path):
            LOGGER.log(level, text, extra={"shown": shown})

    def close(self) -> None:
        """Gives the logger back as it was."""
        for handler in [handler for handler in LOGGER.handlers if handler.get_name() == OURS]:
            LOGGER.removeHandler(handler)
            handler.close()
        LOGGER.propagate = True


class _Stamped(logging.Formatter):
    """Every line of a text with the local time."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="seconds")
        return "\n".join(f"{moment} {line}" for line in _text(record).splitlines())


class _FileHandler(logging.FileHandler):
    """A file whose errors end the run, as those of its records do."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise  # logging calls this while it handles the error


class _OutputHandler(logging.StreamHandler[Any]):
    """Standard output. A run goes on without it where its reader has gone, such as `| head`."""

    def handleError(self, record: logging.LogRecord) -> None:
        LOGGER.removeHandler(self)
        # What is left in the buffer would fail again at the end and change the exit code.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)


class _AboveBar(logging.Handler):
    """Lines above the progress bar of a terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(_text(record), file=sys.stdout)


def _text(record: logging.LogRecord) -> str:
    return f"warning: {record.getMessage()}" if record.levelno >= logging.WARNING else record.getMessage()


def progress_line(record: Record, total_steps: int, total_tokens: int, seconds_left: float) -> str:
    """One line for a `train` record: how far the run is, how it learns, and the time that is left.

    Args:
        total_tokens: at the last step of the run.
        seconds_left: of training, evaluations and saves together.
    """
    step, tokens, speed = record["step"], record["tokens"], record["tokens_per_second"]
    parts = [
        f"step {step}/{total_steps}",
        f"{short_count(tokens)} of {short_count(total_tokens)} tokens",
        f"loss {record['loss']:.4f}",
        f"lr {record['learning_rate']:.2e}",
        f"grad norm {record['grad_norm']:.2f}",
        f"{speed:,.0f} tokens/s",
        *([f"MFU {record['mfu']:.1%}"] if record.get("mfu") is not None else []),
        *([f"{record['memory_bytes'] / 2**30:.1f} GiB"] if record.get("memory_bytes") else []),
        f"{short_time(seconds_left)} left",
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
