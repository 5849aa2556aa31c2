"""records.jsonl, one JSON object per measurement in the order of training; and the log that a person reads.

A kill can tear the last line. It is dropped on reading and cut off before anything is appended. Any other line that
cannot be read is a corrupt file.

Log lines go through Python's logging under the name `megatron_cpt`: all of them into RUN/log.txt, and to standard
output where that or standard error is no terminal, as under Slurm and Kubernetes. A terminal shows the progress bar
and, above it, warnings and where the run ends. Lines of ranks other than 0 say whose they are.
"""

import hashlib
import logging
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
from tqdm import tqdm

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault
from megatron_cpt.config.units import short_count
from megatron_cpt.runs.folder import named_errors, sync_folder, write_durably
from megatron_cpt.runs.permissions import no_link

Record = dict[str, Any]

# Fields that differ between two runs of the same configuration; all others are equal.
_TIMING_FIELDS = frozenset({"seconds", "tokens_per_second", "mfu", "memory_bytes"})


@dataclass(frozen=True)
class RecordsDigest:
    """The records of a file up to a moment, as a checkpoint remembers them."""

    count: int
    """How many there were."""
    sha256: str
    """SHA-256 of their lines, each with its newline, in hexadecimal."""


class RecordWriter:
    """Appends records to a file; they are on disk once `flush` has returned."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pending: list[bytes] = []
        self._file = open(path, "ab", buffering=0, opener=no_link)  # noqa: SIM115  (until `close`)
        _cut_torn_line(path)
        content = path.read_bytes()
        self._count, self._hash = content.count(b"\n"), hashlib.sha256(content)
        sync_folder(path.parent)

    def append(self, record: Record) -> None:
        """Takes a record. Numpy scalars and arrays are allowed; a number that is not finite becomes null."""
        self._pending.append(orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY))

    def flush(self) -> None:
        """Writes what was appended and waits until it is on disk."""
        if not self._pending:
            return
        content = b"\n".join([*self._pending, b""])
        self._count += len(self._pending)
        self._hash.update(content)
        unwritten = memoryview(content)
        self._pending.clear()
        with named_errors(self._path):
            while unwritten:
                unwritten = unwritten[self._file.write(unwritten) :]
            os.fsync(self._file.fileno())

    def digest(self) -> RecordsDigest:
        """The records that are in the file."""
        self.flush()
        return RecordsDigest(self._count, self._hash.hexdigest())

    def close(self) -> None:
        """Flushes and closes the file."""
        self.flush()
        self._file.close()


def read_records(path: Path) -> list[Record]:
    """All records of a file, in order.

    Raises:
        BadInput: there is no such file.
        IntegrityFault: a line other than a torn last one is not a JSON object.
    """
    return [_parse(line, number, path) for number, line in enumerate(_whole_lines(path), start=1)]


def verify_records(path: Path, known: RecordsDigest, checkpoint: Path) -> None:
    """Compares the records before a resume with those that its checkpoint knows; later ones may follow.

    Raises:
        IntegrityFault: some are missing or changed.
    """
    lines = _whole_lines(path) if path.exists() else []
    if len(lines) < known.count:
        found = f"{len(lines)} records" if path.exists() else "no such file"
    elif hashlib.sha256(b"".join(line + b"\n" for line in lines[: known.count])).hexdigest() != known.sha256:
        found = f"{len(lines)} records, of which the first {known.count} are not those that were written"
    else:
        return
    raise IntegrityFault(
        f"{path}: {found}; {checkpoint} was written after {known.count} records, and the metrics of the run count from "
        "the first of them. Put the file back. Without it, go on in another folder, with a baseline of its own: "
        f"`init_from: {{checkpoint: {checkpoint}, load_optimizer: true, load_schedule: true, load_data_position: "
        "true}`."
    )


def drop_records_after(path: Path, step: int) -> None:
    """Removes the records of later steps, durably: what a resume from a checkpoint at `step` does again.

    A file that is not there is left so. Raises IntegrityFault as `read_records` does.
    """
    if not path.exists():
        return
    lines = _whole_lines(path)
    kept = [line for number, line in enumerate(lines, start=1) if _step(line, number, path) <= step]
    write_durably(path, b"".join(line + b"\n" for line in kept))


def without_timing(record: Record) -> Record:
    """A record without the fields that depend on the machine's speed and memory."""
    return {name: value for name, value in record.items() if name not in _TIMING_FIELDS}


def _whole_lines(path: Path) -> list[bytes]:
    """The lines of a file without a torn last one."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        fault = Fault(str(path), f"the records cannot be read: {error.strerror or error}.", "Give a run folder.")
        raise BadInput(fault) from error
    last = lines.pop()
    return [*lines, last] if _is_object(last) else lines


def _cut_torn_line(path: Path) -> None:
    """Makes a file end with a whole line, so that what is appended begins a line of its own."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole == len(content):
        return
    with path.open("r+b") as file:
        if _is_object(content[whole:]):
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
        else:
            file.truncate(whole)
        os.fsync(file.fileno())


def _is_object(line: bytes) -> bool:
    """Whether a line without its newline is whole: no proper beginning of a JSON object is an object."""
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False


def _parse(line: bytes, number: int, path: Path) -> Record:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise IntegrityFault(
            f"{path}, line {number}: not a record ({error}). The file was altered or damaged."
        ) from error
    if not isinstance(record, dict):
        raise IntegrityFault(f"{path}, line {number}: not a record but {type(record).__name__}. The file was altered.")
    return record


def _step(line: bytes, number: int, path: Path) -> int:
    """The step of a record."""
    step = _parse(line, number, path).get("step")
    if not isinstance(step, int):
        raise IntegrityFault(f"{path}, line {number}: a record without a step. The file was altered.")
    return step


_LOGGER = logging.getLogger("megatron_cpt")
OURS = "megatron_cpt run"
"""Name of the handlers of a run that is open."""


class RunLog:
    """The log of the run that this process trains. Opening one closes what another has left open."""

    def __init__(self, path: Path, rank: int = 0) -> None:
        self.close()
        self._path = path
        with named_errors(path):
            file = _FileHandler(path, encoding="utf-8")
        stamped = _Stamped(rank)
        file.setFormatter(stamped)
        shown: logging.Handler
        if sys.stdout.isatty() and sys.stderr.isatty():
            shown = _AboveBar()
            shown.addFilter(lambda record: record.levelno >= logging.WARNING or getattr(record, "shown", False))
        else:
            shown = _OutputHandler(sys.stdout)
            shown.setFormatter(stamped)
        for handler in (file, shown):
            handler.set_name(OURS)
            _LOGGER.addHandler(handler)
        _LOGGER.setLevel(logging.INFO)
        _LOGGER.propagate = False

    def write(self, text: str, level: int = logging.INFO, shown: bool = False) -> None:
        """Writes a text; every line of it gets the local time and its offset, and a warning says that it is one.

        Args:
            shown: a terminal shows it too, above the bar.
        """
        with named_errors(self._path):
            _LOGGER.log(level, text, extra={"shown": shown})

    def close(self) -> None:
        """Gives the logger back as it was."""
        for handler in [handler for handler in _LOGGER.handlers if handler.get_name() == OURS]:
            _LOGGER.removeHandler(handler)
            handler.close()
        _LOGGER.propagate = True


def append_to_log(path: Path, text: str, rank: int) -> bytes:
    """Adds lines to a log past Python's logging, and returns them: for a thread beside one that may hold its lock.

    Raises OSError.
    """
    line = logging.LogRecord(_LOGGER.name, logging.INFO, __file__, 0, text, None, None)
    content = f"{_Stamped(rank).format(line)}\n".encode()
    with open(path, "ab", buffering=0, opener=no_link) as file:
        file.write(content)
    return content


_LOOKED_AT = 1 << 16
"""Bytes at either end of a log that are searched for a time."""


def log_times(path: Path) -> tuple[str, str] | None:
    """When the first and the last line of a log were written, as they say it; None where there is none."""
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        first = file.read(_LOOKED_AT)
        file.seek(max(0, path.stat().st_size - _LOOKED_AT))
        last = file.read()
    found = [
        re.findall(rb"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\S*(?= )", part, flags=re.MULTILINE) for part in (first, last)
    ]
    return (found[0][0].decode(), found[1][-1].decode()) if all(found) else None


class _Stamped(logging.Formatter):
    """Every line of a text with the local time and, of a rank other than 0, the rank."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = f"[rank{rank}] " if rank else ""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="seconds")
        return "\n".join(f"{moment} {self._rank}{line}" for line in _text(record).splitlines())


class _FileHandler(logging.FileHandler):
    """A file whose errors end the run, as those of its records do. A link in its place is refused."""

    def _open(self) -> Any:
        return open(self.baseFilename, self.mode, encoding=self.encoding, opener=no_link)

    def handleError(self, record: logging.LogRecord) -> None:
        raise  # logging calls this while it handles the error


class _OutputHandler(logging.StreamHandler[Any]):
    """Standard output. A run goes on without it where its reader has gone, such as `| head`."""

    def handleError(self, record: logging.LogRecord) -> None:
        _LOGGER.removeHandler(self)
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


_EARLIER_WORK = 0.8
"""Weight of earlier work beside that which was done last: the first step and the first save take longer than others."""


class RemainingTime:
    """Work of several kinds: how long it took, and how long what is left of it will take."""

    def __init__(self) -> None:
        self._done: dict[str, tuple[float, float]] = {}

    def add(self, kind: str, amount: float, seconds: float) -> None:
        """Takes note of work that was done, in the unit of its kind."""
        before, their_seconds = self._done.get(kind, (0.0, 0.0))
        self._done[kind] = (_EARLIER_WORK * before + amount, _EARLIER_WORK * their_seconds + seconds)

    def seconds(self, left: Mapping[str, float]) -> float:
        """Seconds of the work that is left, by kind. A kind of which nothing was done yet counts as nothing."""
        known = {kind: self._done[kind] for kind in left if kind in self._done}
        return sum(left[kind] * seconds / amount for kind, (amount, seconds) in known.items())
