"""A run whose folder lost or got something does not go on as if nothing had been: nothing is deleted, all is said."""

import shutil
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from megatron_cpt.config.errors import BadInput, IntegrityFault, RankFailed
from megatron_cpt.runs.checkpoint_state import complete_checkpoints
from megatron_cpt.runs.folder import write_json
from tests.ranks import Ranks
from tests.train.runs import records_of, train
from tests.workshop import Workshop

TO_8, TO_12 = ("training.tokens=8 steps",), ("training.tokens=12 steps",)


def said_of(path: Path, overrides: tuple[str, ...]) -> str:
    """Job: what kind of refusal a start meets, and its words."""
    with pytest.raises((BadInput, IntegrityFault, RankFailed)) as error:
        train(path, overrides)
    return f"{type(error.value).__name__}: {error.value}"


@pytest.fixture(scope="module")
def trained(two_ranks: Ranks, workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps with checkpoints at 4 and 8."""
    run = tmp_path_factory.mktemp("altered") / "run"
    two_ranks.call(train, path=workshop.write_config(run), overrides=TO_8)
    return run


@pytest.fixture
def copy(trained: Path, workshop: Workshop, tmp_path: Path) -> Path:
    """A copy of it, with its configuration beside it."""
    shutil.copytree(trained, tmp_path / "run")
    workshop.write_config(tmp_path / "run")
    return tmp_path / "run"


def refused(ranks: Ranks, run: Path, overrides: tuple[str, ...] = TO_12) -> str:
    """What the first of the ranks to know says of another start; the records are as they were."""
    records = run / "records.jsonl"
    before = records.read_bytes() if records.exists() else None
    said = ranks.call(said_of, path=run.with_suffix(".yaml"), overrides=overrides)
    assert before == (records.read_bytes() if records.exists() else None)
    return said[0]


def remove_checkpoints(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def remove_markers(run: Path) -> None:
    for checkpoint in complete_checkpoints(run / "checkpoints"):
        (checkpoint / "complete.json").unlink()


def remove_checkpoints_and_status(run: Path) -> None:
    remove_checkpoints(run)
    (run / "status.json").unlink()


@pytest.mark.ci
@pytest.mark.parametrize("lose", [remove_checkpoints, remove_markers, remove_checkpoints_and_status])
def test_a_run_that_has_lost_its_checkpoints_does_not_begin_again(
    one_rank: Ranks, copy: Path, lose: Callable[[Path], None]
) -> None:
    lose(copy)
    said = refused(one_rank, copy)
    assert said.startswith("BadInput")
    assert "tells of 8 steps" in said
    assert "Put the checkpoints back" in said


def test_a_run_that_never_saved_begins_again(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    """Killed before its first checkpoint: its records are of steps that are done again."""
    run = tmp_path / "run"
    path = workshop.write_config(run)
    run.mkdir()
    write_json(run / "status.json", {"state": "running", "exit_code": None, "message": None, "step": 0, "tokens": 0})
    (run / "records.jsonl").write_text('{"kind": "train", "step": 1}\n')
    assert one_rank.call(train, path=path, overrides=("training.tokens=4 steps",)) == [0]
    assert [record["step"] for record in records_of(run, "train")] == [1, 2, 3, 4]


def cut(records: Path) -> None:
    lines = records.read_bytes().splitlines(keepends=True)
    records.write_bytes(b"".join(lines[:-3]))


def change(records: Path) -> None:
    lines = [orjson.loads(line) for line in records.read_bytes().splitlines()]
    first = next(line for line in lines if line["kind"] == "validation")
    first["loss"] = 0.25
    records.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))


@pytest.mark.parametrize(("spoil", "words"), [(Path.unlink, "no such file"), (cut, "records;"), (change, "not those")])
def test_a_resume_knows_the_records_of_its_checkpoint(
    two_ranks: Ranks, copy: Path, spoil: Callable[[Path], None], words: str
) -> None:
    records = copy / "records.jsonl"
    spoil(records)
    said = refused(two_ranks, copy)
    assert said.startswith("IntegrityFault")
    assert words in said
    assert "load_data_position: true}`" in said


def test_records_beyond_the_checkpoint_are_dropped_and_a_torn_line_too(one_rank: Ranks, copy: Path) -> None:
    records = copy / "records.jsonl"
    before = records.read_bytes()
    records.write_bytes(before + b'{"kind": "train", "step": 9}\n{"kind": "tra')
    one_rank.call(train, path=copy.with_suffix(".yaml"), overrides=TO_12)
    assert records.read_bytes().startswith(before)
    assert [record["step"] for record in records_of(copy, "train")] == list(range(1, 13))


def test_only_what_the_run_made_is_resumed_from_or_removed(one_rank: Ranks, copy: Path) -> None:
    checkpoints = copy / "checkpoints"
    newest = checkpoints / "step-00000008"
    shutil.copytree(newest, checkpoints / "step-00000009.bak")
    (checkpoints / "step-notes").mkdir()
    (checkpoints / "step-notes" / "text").write_text("mine")
    (checkpoints / "step-00000003").symlink_to(copy / "nowhere")
    (copy / "hf_steps" / "step-00000010.bak").mkdir(parents=True)
    one_rank.call(train, path=copy.with_suffix(".yaml"), overrides=TO_12)
    assert (checkpoints / "step-00000009.bak" / "complete.json").exists()
    assert (checkpoints / "step-notes" / "text").read_text() == "mine"
    assert (checkpoints / "step-00000003").is_symlink()
    assert (copy / "hf_steps" / "step-00000010.bak").exists()
    assert (checkpoints / "step-00000012" / "complete.json").exists()
    assert "left alone: step-00000003, step-00000009.bak, step-notes" in (copy / "log.txt").read_text()


@pytest.mark.parametrize("dangling", [True, False])
def test_a_link_under_the_name_of_a_later_checkpoint_is_refused(one_rank: Ranks, copy: Path, dangling: bool) -> None:
    checkpoints = copy / "checkpoints"
    (checkpoints / "step-00000012").symlink_to(copy / "nowhere" if dangling else checkpoints / "step-00000004")
    said = refused(one_rank, copy)
    assert said.startswith("BadInput")
    assert "step-00000012: is a link or a file, and has the name of a checkpoint" in said


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["hf/config.json", "position.json", "hf/lineage.json", "hf/tokenizer.json"])
@pytest.mark.parametrize("place", [0, 40, -10])
def test_a_checkpoint_is_compared_with_its_hashes_before_it_is_read(
    one_rank: Ranks, copy: Path, name: str, place: int
) -> None:
    flip(copy / "checkpoints" / "step-00000008" / name, place)
    said = refused(one_rank, copy)
    assert said.startswith("IntegrityFault")
    assert f"missing or changed since they were written: {name}." in said
    assert "go on from an earlier checkpoint" in said


def test_the_marker_names_exactly_the_files_of_the_checkpoint(one_rank: Ranks, copy: Path) -> None:
    checkpoint = copy / "checkpoints" / "step-00000008"
    (checkpoint / "shards" / "__7_0.distcp").write_text("more")
    assert "not written with it: shards/__7_0.distcp" in refused(one_rank, copy)
    (checkpoint / "shards" / "__7_0.distcp").unlink()
    marker = orjson.loads((checkpoint / "complete.json").read_bytes())
    left_out = next(name for name in marker["sha256"] if name.endswith(".distcp"))
    del marker["sha256"][left_out]
    (checkpoint / "complete.json").write_bytes(orjson.dumps(marker))
    assert "complete.json: not a readable marker" in refused(one_rank, copy)
    del marker["content_sha256"]  # as version 0.1 wrote it
    (checkpoint / "complete.json").write_bytes(orjson.dumps(marker))
    assert f"not written with it: {left_out}" in refused(one_rank, copy)
