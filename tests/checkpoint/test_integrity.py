"""A folder is a checkpoint when it is sealed, and stays one while its bytes stay what they were."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from megatron_cpt.checkpoint.load import leave_hashes, seal, verify, verify_and_vet
from megatron_cpt.config.errors import IntegrityFault
from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.families.shape import read_shape
from megatron_cpt.model.build import ModelOptions, build_model
from megatron_cpt.parallel import groups
from megatron_cpt.runs.checkpoint_state import MARKER, is_complete, read_hashes
from tests.checkpoint.hf_models import write_llama
from tests.checkpoint.weights import save_weights
from tests.ranks import Ranks

FILES = {
    "position.json": "{}",
    "shards/__0_0.distcp": "one",
    "shards/__1_0.distcp": "two",
    "shards/.metadata": "table",
    "hf/config.json": "{}",
}


def write_and_seal(folder: Path) -> None:
    """Each rank writes its files, as a save does, then all seal."""
    write(folder)
    seal(folder)


def write(folder: Path) -> None:
    """The files of this rank, and their hashes."""
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name.startswith(f"__{groups.rank()}_") or (groups.rank() == 0 and path.suffix != ".distcp"):
            path.write_text(content)
    leave_hashes(folder, groups.rank())


def refusal(folder: Path) -> str | None:
    """What verify says on this rank."""
    try:
        verify(folder)
    except IntegrityFault as error:
        return str(error)
    return None


@pytest.fixture
def sealed(two_ranks: Ranks, tmp_path: Path) -> Path:
    two_ranks.call(write_and_seal, folder=tmp_path / "step")
    return tmp_path / "step"


def test_the_marker_names_every_file_and_both_ranks_find_them_intact(two_ranks: Ranks, sealed: Path) -> None:
    assert is_complete(sealed)
    assert set(read_hashes(sealed)) == set(FILES)
    assert two_ranks.call(refusal, folder=sealed) == [None, None]


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_damage_to_any_file_is_refused_on_all_ranks(two_ranks: Ranks, sealed: Path, name: str, damage: str) -> None:
    if damage == "flip":
        content = bytearray((sealed / name).read_bytes())
        content[0] ^= 1
        (sealed / name).write_bytes(content)
    else:
        (sealed / name).unlink()
    said = two_ranks.call(refusal, folder=sealed)
    assert all("missing or changed" in (text or "") for text in said)
    assert any(name in (text or "") for text in said)


@contextmanager
def asked_for(folder: Path) -> Iterator[set[str]]:
    """Names of the files below a folder that this process opens, and of the folders that it lists, in the block."""
    asked, over = set[str](), list[bool]()

    def listen(event: str, given: tuple[object, ...]) -> None:
        if not over and event in ("open", "os.listdir", "os.scandir") and str(given[0]).startswith(str(folder)):
            asked.add(Path(str(given[0])).name)

    sys.addaudithook(listen)  # for good: a job's process ends with it
    yield asked
    over.append(True)


def seal_and_listen(folder: Path) -> set[str]:
    """Job: what this rank asks for when it seals a folder."""
    write(folder)
    with asked_for(folder) as asked:
        seal(folder)
    return asked


def read_and_listen(folder: Path, hf_folder: Path) -> set[str]:
    """Job: what this rank asks for before it reads a checkpoint of weights."""
    parallel = ParallelSettings(tensor=2)
    groups.init_model_parallel(parallel)
    save_weights(
        folder, build_model(read_shape(hf_folder), ModelOptions(sequence_length=32, parallel=parallel)), hf_folder
    )
    with asked_for(folder) as asked:
        verify_and_vet(folder)
    return asked


def test_a_rank_asks_for_its_own_files(two_ranks: Ranks, tmp_path: Path) -> None:
    """A thousand ranks that look for each other's would ask the file system a million times."""
    sealing = two_ranks.call(seal_and_listen, folder=tmp_path / "sealed")
    assert sealing[1] == {"hashes-00001.json"}
    assert {"hashes-00000.json", ".metadata"} <= sealing[0]


def test_rank_0_vets_the_table_of_contents_and_one_rank_hashes_each_shard(two_ranks: Ranks, tmp_path: Path) -> None:
    reading = two_ranks.call(read_and_listen, folder=tmp_path / "step", hf_folder=write_llama(tmp_path / "hf"))
    shards = {path.name for path in (tmp_path / "step/shards").glob("*.distcp")}
    first, second = (asked & shards for asked in reading)
    assert ".metadata" in reading[0] and reading[1] == {MARKER, *second}
    # Rank 0 looks into the others' shards too, at what is no tensor.
    assert first | second == shards and len(second) == len(shards) // 2


@pytest.mark.parametrize(
    "marker", ["", "[]", "{}", '{"sha256": {}}', '{"sha256": {"../x": "0"}}', '{"sha256": {"/x": "0"}}']
)
def test_a_broken_marker_is_refused(tmp_path: Path, marker: str) -> None:
    (tmp_path / MARKER).write_text(marker)
    with pytest.raises(IntegrityFault):
        read_hashes(tmp_path)


def test_a_folder_without_marker_is_no_checkpoint(tmp_path: Path) -> None:
    assert not is_complete(tmp_path)
    shutil.rmtree(tmp_path)
    assert not is_complete(tmp_path)
