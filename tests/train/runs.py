"""Whole runs for tests, in a pool of ranks or as a user starts them."""

from pathlib import Path
from typing import Any

from megatron_cpt.config.load import load_config
from megatron_cpt.runs.folder import RunFolder
from megatron_cpt.runs.records import Record, read_records, without_timing
from megatron_cpt.train.program import run_to_end

# The layouts of two processes that must give what one process gives.
LAYOUTS: dict[str, tuple[str, ...]] = {
    "tensor 2": ("parallel.tensor=2",),
    "pipeline 2": ("parallel.pipeline=2",),
    "data 2": (),
    "data 2, distributed optimizer": ("parallel.distributed_optimizer=true",),
}


def train(path: Path, overrides: tuple[str, ...] = ()) -> None:
    """Job: the training program on this rank."""
    config = load_config(path, overrides)
    folder = RunFolder(config.run.folder)
    folder.create()
    run_to_end(config, folder)


def records_of(run: Path, *kinds: str) -> list[Record]:
    """A run's records without timings, all or of some kinds."""
    records = [without_timing(record) for record in read_records(run / "records.jsonl")]
    return [record for record in records if not kinds or record["kind"] in kinds]


def column(records: list[Record], name: str) -> list[Any]:
    """One field of records."""
    return [record[name] for record in records]
