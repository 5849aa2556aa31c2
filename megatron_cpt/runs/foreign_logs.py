"""Logs of other systems: the scalars of a TensorBoard folder, the rows of a CSV file."""

import csv
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.runs.folder import RunFolder


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
    Raises BadInput, with a remedy, for a file that cannot be read.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True, restval="")
            return list(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(Fault(str(path), f"cannot be read: {error}.", remedy)) from error
