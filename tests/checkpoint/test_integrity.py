"""A folder is a checkpoint when it is sealed, and stays one while its bytes stay what they were."""

import shutil
from pathlib import Path

import pytest

from megatron_cpt.checkpoint.load import leave_hashes, seal, verify
from megatron_cpt.config.errors import IntegrityFault
from megatron_cpt.parallel import groups
from megatron_cpt.runs.checkpoint_state import MARKER, is_complete, read_hashes
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
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name.startswith(f"__{groups.rank()}_") or (groups.rank() == 0 and path.suffix != ".distcp"):
            path.write_text(content)
    leave_hashes(folder, groups.rank())
    seal(folder)


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
