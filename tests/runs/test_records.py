from contextlib import closing
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_cpt.config.errors import BadInput, IntegrityFault
from megatron_cpt.runs.records import (
    Record,
    RecordWriter,
    drop_records_after,
    read_records,
    without_timing,
)


def train(step: int) -> Record:
    return {"kind": "train", "step": step, "loss": 5.0 / (step + 1), "seconds": 0.1}


def write(path: Path, *records: Record) -> None:
    with closing(RecordWriter(path)) as writer:
        for record in records:
            writer.append(record)


def test_records_are_read_as_written_and_appended(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write(path, train(1), train(2))
    write(path, train(3))
    assert read_records(path) == [train(1), train(2), train(3)]


def test_flush_puts_on_disk_what_was_appended_and_no_sooner(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with closing(RecordWriter(path)) as writer:
        writer.append(train(1))
        assert path.read_bytes() == b""
        writer.flush()
        assert read_records(path) == [train(1)]
        writer.flush()
        assert read_records(path) == [train(1)]


def test_numpy_values_and_numbers_that_are_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write(path, {"step": np.int64(3), "nats": np.array([1.5, 2.5]), "loss": float("nan")})
    assert read_records(path) == [{"step": 3, "nats": [1.5, 2.5], "loss": None}]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 200))
def test_wherever_a_kill_cuts_the_file_whole_records_remain_and_writing_goes_on(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "records.jsonl"
    records = [train(step) for step in range(3)]
    whole = b"".join(orjson.dumps(record) + b"\n" for record in records)
    left = whole[: min(cut, len(whole))]
    path.write_bytes(left)
    # A line that lacks nothing but its newline is whole.
    remaining = [record for index, record in enumerate(records) if len(left) >= end_of(whole, index)]
    assert read_records(path) == remaining
    write(path, train(7))
    assert read_records(path) == [*remaining, train(7)]


def end_of(content: bytes, line: int) -> int:
    """Bytes up to the end of a line, its newline left out."""
    return len(b"\n".join(content.split(b"\n")[: line + 1]))


@pytest.mark.parametrize("broken", [b"{torn\n", b"\n", b"[1]\n", b"\0\0\0\n"])
def test_a_broken_line_that_is_not_the_torn_last_is_an_integrity_fault(tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(orjson.dumps(train(1)) + b"\n" + broken)
    with pytest.raises(IntegrityFault, match="line 2: not a record"):
        read_records(path)
    with pytest.raises(IntegrityFault, match="line 2: not a record"):
        drop_records_after(path, 1)


def test_no_records_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="the records cannot be read"):
        read_records(tmp_path / "records.jsonl")


def test_a_resume_drops_what_its_checkpoint_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    validation = {"kind": "validation", "step": 2, "loss": 4.0}
    write(path, {"kind": "validation", "step": 0, "loss": 5.0}, train(1), train(2), validation, train(3))
    kept = path.read_bytes().split(b"\n")[:4]
    with path.open("ab") as file:
        file.write(b'{"kind":"tr')
    drop_records_after(path, 2)
    assert path.read_bytes() == b"\n".join([*kept, b""])
    drop_records_after(path, -1)
    assert read_records(path) == []
    assert [file.name for file in tmp_path.iterdir()] == ["records.jsonl"]


def test_dropping_from_a_file_that_is_not_there_makes_none(tmp_path: Path) -> None:
    drop_records_after(tmp_path / "records.jsonl", 5)
    assert list(tmp_path.iterdir()) == []


def test_a_record_without_a_step_cannot_be_placed(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write(path, train(1), {"kind": "train"})
    with pytest.raises(IntegrityFault, match="line 2: a record without a step"):
        drop_records_after(path, 1)


def test_without_timing() -> None:
    record = {**train(1), "tokens_per_second": 1.0, "mfu": None, "memory_bytes": 5}
    assert without_timing(record) == {"kind": "train", "step": 1, "loss": 2.5}
