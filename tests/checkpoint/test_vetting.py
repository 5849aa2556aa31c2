"""A checkpoint with a program in it is refused, and the program does not run."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

from megatron_cpt.checkpoint.load import read_table, vet
from megatron_cpt.config.errors import IntegrityFault


class Program:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def write_folder(shards: Path, value: Any, relative_path: str = "__0_0.distcp") -> None:
    """A torch_dist folder that holds one value that is not a tensor."""
    content = io.BytesIO()
    torch.save(value, content)
    (shards / "__0_0.distcp").write_bytes(b"padding" + content.getvalue())
    index = MetadataIndex("random/shard_0_1")
    table = Metadata(
        state_dict_metadata={index.fqn: BytesStorageMetadata()},
        storage_data={index: _StorageInfo(relative_path, len(b"padding"), len(content.getvalue()))},
    )
    (shards / ".metadata").write_bytes(pickle.dumps(table))


def test_plain_values_and_tensors_pass(tmp_path: Path) -> None:
    write_folder(tmp_path, {"cpu": torch.zeros(3), "step": 4})
    vet(tmp_path)
    assert list(read_table(tmp_path).state_dict_metadata) == ["random/shard_0_1"]


def test_a_program_in_the_table_of_contents_is_refused_and_does_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Program(mark)))
    with pytest.raises(IntegrityFault, match=r"refused.*mkdir"):
        vet(tmp_path)
    assert not mark.exists()


def test_a_program_among_the_values_is_refused_and_does_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    write_folder(tmp_path, {"state": Program(mark)})
    with pytest.raises(IntegrityFault, match=r"refused.*plain values"):
        vet(tmp_path)
    assert not mark.exists()


def test_a_value_outside_the_folder_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, 1, relative_path="../elsewhere")
    with pytest.raises(IntegrityFault, match="outside the folder"):
        vet(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps(Metadata({}))[:-20]])
def test_a_torn_table_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(IntegrityFault):
        vet(tmp_path)
