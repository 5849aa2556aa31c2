"""Logs of other systems: the scalars of a TensorBoard folder, the rows of a CSV file."""

import csv
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.runs.folder import RunFolder

_REST = "more cells than columns"
"""Key of what a row has beyond its columns."""


def is_tensorboard(path: str | Path) -> bool:
    """Whether a path is a folder of TensorBoard events, and no run folder of this package."""
    folder = Path(path)
    return folder.is_dir() and not RunFolder(folder).records.exists() and any(folder.glob("events.out.tfevents*"))


def read_scalars(path: str | Path) -> dict[str, dict[int, float]]:
    """Every scalar of a TensorBoard folder: {tag: {step: value}}.

    A step that was logged twice, as after a restart, has the later value.
    """
    events = EventAccumulator(str(path), size_guidance={"scalars": 0})  # 0: all events are kept
    events.Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def read_csv_rows(path: str | Path, remedy: str) -> tuple[list[str], list[dict[str, str]]]:
    """The columns of a CSV file with a heading, and its rows, the first of which is line 2.

    A cell that a short row lacks is empty.
    Raises BadInput, with a remedy, for a file that cannot be read, for a column that is named twice and for a row with
    more cells than columns.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True, restval="", restkey=_REST)
            columns, rows = list(reader.fieldnames or ()), list(reader)
    except OSError as error:
        raise BadInput(Fault(str(path), f"cannot be read: {error.strerror}.", remedy)) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(Fault(str(path), f"cannot be read: {error}.", remedy)) from error
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    refuse([Fault(f"{path}: {name}", "names two columns.", "Give each column a name of its own.") for name in twice])
    long = [line for line, row in enumerate(rows, start=2) if any(row.pop(_REST, ()))]
    rule, mend = f"has more cells than the {len(columns)} columns.", "Mend the line: numbers have no decimal comma."
    refuse([Fault(f"{path}, line {line}", rule, mend) for line in long[:5]])
    return columns, rows
