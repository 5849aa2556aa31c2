"""What a save does when its writing process cannot do its work: it says so, and leaves no checkpoint."""

import os
import resource
import signal
import weakref
from pathlib import Path
from typing import Any

import pytest
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

from megatron_cpt.checkpoint import save
from megatron_cpt.config.errors import RankFailed, StorageFault
from megatron_cpt.parallel import groups
from megatron_cpt.runs.checkpoint_state import complete_checkpoints
from tests.ranks import Ranks
from tests.train.runs import train
from tests.workshop import Workshop


def die(*arguments: object, **more: object) -> None:
    """Ends the process that calls it as the kernel would for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def refusal(path: Path, overrides: tuple[str, ...], victim: str) -> str:
    """Job: trains while a writing process of the last rank is killed; what the run says."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises((StorageFault, RankFailed)) as error:
        if groups.rank() == groups.world_size() - 1:
            # The processes are forked: each meets this when it comes so far.
            if victim == "writer":
                patch.setattr(save, "leave_hashes", die)
            else:
                patch.setattr(FileSystemWriterAsync, "write_preloaded_data", die)
        train(path, overrides)
    return str(error.value)


@pytest.mark.parametrize("victim", ["writer", "its child"])
@pytest.mark.parametrize("asynchronous", ["true", "false"])
def test_a_killed_writer_ends_the_run_with_an_error(
    two_ranks: Ranks, workshop: Workshop, tmp_path: Path, asynchronous: str, victim: str
) -> None:
    path = workshop.write_config(tmp_path / "run", training={"tokens": "6 steps"}, validation={"sets": {}})
    overrides = (f"checkpoint.async_save={asynchronous}",)
    said = two_ranks.call(refusal, path=path, overrides=overrides, victim=victim, timeout=120)
    expected = "ranks [1] left no hashes" if victim == "writer" else "could not be written"
    assert expected in said[0]
    assert expected in said[1] or said[1] == "rank 0 says why"
    assert complete_checkpoints(tmp_path / "run" / "checkpoints") == []


def full_disk(path: Path, overrides: tuple[str, ...]) -> str:
    """Job: trains where no file may be longer than 40 kB, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        with pytest.raises(StorageFault) as error:
            train(path, overrides)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    return str(error.value)


def test_a_full_disk_ends_the_run_with_an_error(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    path = workshop.write_config(tmp_path / "run")
    said = one_rank.call(full_disk, path=path, overrides=("checkpoint.async_save=true",))[0]
    assert "is its disk full?" in said
    assert complete_checkpoints(tmp_path / "run" / "checkpoints") == []


def copies_at_the_end_of_a_save(path: Path) -> tuple[int, list[bool]]:
    """Job: trains, with copies on the host as from a GPU; how many there are, and which live while they are written."""
    copies: list[weakref.ref[Any]] = []
    alive: list[bool] = []
    finish = save.CheckpointWriter.finish

    def copied(buckets: list[Any], non_blocking: bool = True) -> list[Any]:
        staged = [
            (*places, (texts, [(item, tensor.clone()) for item, tensor in tensors]))
            for *places, (texts, tensors) in buckets
        ]
        copies.extend(weakref.ref(tensor) for *_, (_, tensors) in staged for _, tensor in tensors)
        return staged

    def finish_looking(writer: save.CheckpointWriter, wait: bool) -> Path | None:
        alive.extend(copy() is not None for copy in copies)
        whole = finish(writer, wait)
        if whole is not None:
            assert all(copy() is None for copy in copies), "kept when the file is written"
            copies.clear()
        return whole

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileSystemWriterAsync, "preload_tensors", staticmethod(copied))
        patch.setattr(save.CheckpointWriter, "finish", finish_looking)
        assert train(path) == 0
    return len(alive), alive


def test_copies_on_the_host_live_until_they_are_written(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    path = workshop.write_config(tmp_path / "run", validation={"sets": {}})
    looked_at, alive = one_rank.call(copies_at_the_end_of_a_save, path=path)[0]
    assert looked_at > 0
    assert all(alive)
    assert complete_checkpoints(tmp_path / "run" / "checkpoints") != []
