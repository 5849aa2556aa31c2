"""What a save does when its writing process cannot do its work: it says so, and leaves no checkpoint."""

import os
import resource
import signal
from pathlib import Path

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
