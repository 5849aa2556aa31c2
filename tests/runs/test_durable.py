from pathlib import Path

import numpy as np
import pytest

from megatron_cpt.runs.folder import durable_file, write_durably, write_json


def test_content_appears_whole_under_its_name(tmp_path: Path) -> None:
    write_durably(tmp_path / "text", "ä\n")
    write_durably(tmp_path / "bytes", b"\x00\xff")
    assert (tmp_path / "text").read_bytes() == b"\xc3\xa4\n"
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    write_durably(path, "old")
    with pytest.raises(RuntimeError), durable_file(path) as file:
        file.write(b"ne")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_until_the_end_of_the_block_the_old_content_stands(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_durably(path, "old")
    with durable_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_json_takes_numpy_and_ends_with_a_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "gap.json", {"marks": np.array([0, 1]), "depth": np.float64(0.5), "recovery": None})
    assert (tmp_path / "gap.json").read_text() == (
        '{\n  "marks": [\n    0,\n    1\n  ],\n  "depth": 0.5,\n  "recovery": null\n}\n'
    )
