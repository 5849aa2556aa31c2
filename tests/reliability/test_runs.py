"""Runs: full disks, kills, hostile folders, ranks and locks, each as a user meets it."""

import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pytest

from megatron_cpt.corpus.indexed import IndexedDataset, bin_path
from megatron_cpt.runs.checkpoint_state import complete_checkpoints
from megatron_cpt.runs.folder import ExitCode, Status, read_status
from tests.params import quick_among
from tests.ranks import Ranks
from tests.reliability.running import DISPATCH, command, digests, ended, places, run, started
from tests.train.runs import (
    LAYOUTS,
    column,
    descendants,
    kill_all,
    ranks_of,
    records_of,
    start,
    train,
    wait_for_checkpoint,
    wait_until_gone,
)
from tests.train.test_dead_rank import ENDLESS
from tests.workshop import Workshop

Property = Callable[[str, object], None]


def status_of(run: Path) -> Status:
    status = read_status(run / "status.json")
    assert status is not None
    return status


@pytest.fixture(scope="module")
def whole(one_rank: Ranks, workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    one_rank.call(train, path=workshop.write_config(folder))
    return folder


FILES = ["__0_0.distcp", "__0_1.distcp", ".metadata*", "hashes-*", "position.json*", "complete.json*", "lineage.json*"]


@pytest.mark.ci
@pytest.mark.parametrize("file", quick_among(FILES, ["complete.json*"]))
def test_C3_a_disk_that_is_full_at_a_file_of_a_save(
    one_rank: Ranks, workshop: Workshop, whole: Path, tmp_path: Path, file: str, record_property: Property
) -> None:
    """From the second save on; the status is written, for its place has room."""
    folder = tmp_path / "run"
    path = workshop.write_config(folder)
    words = [sys.executable, "-m", "megatron_cpt.train", path]
    full = {"folder": folder, "action": "full", "at": 1, "place": f"open checkpoints/step-00000008/*{file}"}
    done = run(words, failpoint=full)
    assert done.code == 1
    assert "Traceback" not in done.err
    assert [one.name for one in complete_checkpoints(folder / "checkpoints")] == ["step-00000004"]
    status = status_of(folder)
    assert (status.state, status.exit_code, status.step) == ("failed", 1, 4)
    assert re.search(r"bytes, and [\d,]+ were free", status.message or ""), status.message
    assert "step-00000004 is whole: the same command goes on from it" in (status.message or "")
    one_rank.call(train, path=path)
    assert records_of(folder) == records_of(whole)
    record_property("full disks", 1)


# A disk of $1 for the folder $2, gone when this ends; the status is kept as $3.
SMALL_DISK = """
mount -t tmpfs -o "size=$1" tmpfs "$2" || exit 99
folder=$2 kept=$3
shift 3
"$@"
code=$?
cp "$folder/run/status.json" "$kept"
exit $code
"""


@pytest.mark.slow
@pytest.mark.parametrize("asynchronous", ["false", "true"])
def test_C3_a_small_disk(workshop: Workshop, tmp_path: Path, asynchronous: str, record_property: Property) -> None:
    """It holds a checkpoint and a half. While a save goes on, a record may be the first that finds no room."""
    disk, kept = tmp_path / "disk", tmp_path / "status.json"
    disk.mkdir()
    own_mounts = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", SMALL_DISK, "sh"]
    train = [*DISPATCH, "train", workshop.write_config(disk / "run").rename(tmp_path / "run.yaml")]
    done = run([*own_mounts, "1500k", disk, kept, *train, f"checkpoint.async_save={asynchronous}"])
    if "Operation not permitted" in done.err or done.code == 99:
        pytest.skip(f"no file systems may be mounted here: {done.err}")
    assert done.code == ExitCode.OTHER
    status = read_status(kept)
    assert status is not None
    assert (status.state, status.exit_code, status.step) == ("failed", 1, 4)
    told = r"step-00000008: could not be written: its disk is full\. It needs about [\d,]+ bytes, and [\d,]+ were free"
    if asynchronous == "true":
        told += r"|/disk/run/\S+: cannot be written: No space left on device; [\d,]+ bytes are free on its disk"
    assert re.search(told, status.message or ""), status.message
    assert re.search(told, done.err), done.err
    record_property("full disks", 1)


@pytest.mark.slow  # a run of twelve saves
def test_C4_at_every_moment_a_checkpoint_is_whole(
    workshop: Workshop, tmp_path: Path, record_property: Property
) -> None:
    """Each step saves, one is kept; the folder is looked at every few milliseconds."""
    folder = tmp_path / "run"
    overrides = ("checkpoint.save_interval=1 steps", "checkpoint.keep_last=1", "checkpoint.async_save=true")
    process = start(workshop.write_config(folder), 1, *overrides)
    wait_for_checkpoint(folder, 1, process)
    looks = 0
    while process.poll() is None:
        # Twice: between the list of the folders and the look at their markers a newer one may have come.
        found = complete_checkpoints(folder / "checkpoints") or complete_checkpoints(folder / "checkpoints")
        assert found, f"after {looks} looks"
        looks += 1
        time.sleep(0.005)
    assert process.returncode == ExitCode.DONE
    record_property("looks", looks)


EVIL = "open({marker!r}, 'w').close()\nclass Evil: pass\n"
# Python that runs at the start of every process: connections beyond this machine are noted, and refused.
NO_NETWORK = """
import os, sys
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        host = arguments[1][0] if event == "socket.connect" and isinstance(arguments[1], tuple) else arguments[0]
        if isinstance(host, str) and host not in ("127.0.0.1", "::1", "localhost", os.uname().nodename):
            open({marker!r}, "a").write(f"{{event}} {{host}}\\n")
            raise OSError("no network")
sys.addaudithook(hook)
"""


@pytest.mark.slow  # five commands, each of which imports torch
def test_C11_nothing_of_a_hostile_folder_runs_or_is_fetched(
    workshop: Workshop, tmp_path: Path, record_property: Property
) -> None:
    """Code by auto_map, kernels of a repository, programs in templates."""
    hf, marker = tmp_path / "hf", tmp_path / "executed"
    shutil.copytree(workshop.hf, hf)
    config = orjson.loads((hf / "config.json").read_bytes())
    config |= {
        "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"},
        "_attn_implementation": "someone/kernels",
        "_attn_implementation_internal": "someone/kernels",
    }
    (hf / "config.json").write_bytes(orjson.dumps(config))
    tokenizer = orjson.loads((hf / "tokenizer_config.json").read_bytes())
    template = "{{ cycler.__init__.__globals__.os.system('touch " + str(marker) + "') }}"
    tokenizer |= {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "chat_template": template}
    (hf / "tokenizer_config.json").write_bytes(orjson.dumps(tokenizer))
    (hf / "chat_template.jinja").write_text(template)
    (hf / "evil.py").write_text(EVIL.format(marker=str(marker)))
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "sitecustomize.py").write_text(NO_NETWORK.format(marker=str(tmp_path / "connected")))
    environment = {"PYTHONPATH": str(tmp_path / "python")}
    path = workshop.write_config(tmp_path / "run", model={"hf": str(hf)}, training={"tokens": "4 steps"})
    for words in (
        ["plan", path],
        ["train", path],
        ["convert", "from-hf", hf, tmp_path / "model"],
        ["convert", "to-hf", tmp_path / "run", tmp_path / "exported"],
        ["convert", "verify", hf, hf],
    ):
        done = command(*words, environment=environment)
        assert done.code in (0, 2), done.err
        assert "Traceback" not in done.err
        assert not marker.exists(), words
        assert not (tmp_path / "connected").exists(), (tmp_path / "connected").read_text()
    record_property("commands", 5)


@pytest.mark.parametrize("action", ["kill", "full"])
@pytest.mark.slow  # each place is two commands
def test_C14_an_export_is_absent_or_whole(
    workshop: Workshop, whole: Path, tmp_path: Path, action: str, record_property: Property
) -> None:
    """Killed, or out of room, at writes that are spread over the command."""
    folder, checkpoint = tmp_path / "out", whole / "checkpoints" / "step-00000012"
    folder.mkdir()
    words = [*DISPATCH, "convert", "to-hf", checkpoint, folder / "hf"]
    passed = len(places(words, folder, tmp_path / "log"))
    expected = digests(folder / "hf")
    tried = sorted({1 + step * (passed - 1) // 7 for step in range(8)})
    for at in tried:
        shutil.rmtree(folder / "hf")
        done = run(words, failpoint={"folder": folder, "at": at, "action": action})
        assert done.code == (-signal.SIGKILL if action == "kill" else 1), (at, done.err)
        assert not (folder / "hf").exists() or digests(folder / "hf") == expected, at
        shutil.rmtree(folder / "hf", ignore_errors=True)
        assert run(words).code == 0
        assert digests(folder / "hf") == expected
        assert [one.name for one in folder.iterdir()] == ["hf"], "what was cut short is swept"
    record_property("kills" if action == "kill" else "full disks", len(tried))


@pytest.mark.ci
def test_C15_what_is_loaded_gives_the_numbers_of_what_was_saved(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path
) -> None:
    """The losses of every sequence after the last step, and those of another run before its first, from the file."""
    first, second = tmp_path / "first", tmp_path / "second"
    eight = ("training.tokens=8 steps", "model.dropout=0.1")
    one_rank.call(train, path=workshop.write_config(first), overrides=eight)
    start = f"init_from.checkpoint={first / 'checkpoints' / 'step-00000008'}"
    one_rank.call(train, path=workshop.write_config(second), overrides=(*eight, start))
    saved = [record for record in records_of(first, "validation") if record["step"] == 8]
    loaded = [record for record in records_of(second, "validation") if record["step"] == 0]
    assert len(saved) == 2
    for name in ("set", "loss", "sequence_nats"):
        assert column(saved, name) == column(loaded, name)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["a second SIGTERM", "SIGKILL"])
def test_F2_a_signal_that_is_followed_by_another(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path, end: str, record_property: Property
) -> None:
    """The checkpoints are whole, and the same command goes on as if nothing had been."""
    draw = random.Random(7)
    undisturbed = tmp_path / "undisturbed"
    long = ("training.tokens=60 steps", "checkpoint.async_save=true")
    one_rank.call(train, path=workshop.write_config(undisturbed), overrides=long)
    for number in range(3):
        folder = tmp_path / f"run{number}"
        path = workshop.write_config(folder)
        process = start(path, 1, *long)
        wait_for_checkpoint(folder, 8, process)
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(draw.uniform(0, 0.5))
        if end == "SIGKILL":
            kill_all(process)
        else:
            os.kill(process.pid, signal.SIGTERM)
            assert process.wait(60) == ExitCode.PREEMPTED
        assert start(path, 1, *long).wait(120) == ExitCode.DONE
        assert records_of(folder) == records_of(undisturbed)
    record_property("signals", 6)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tensor 2", "pipeline 2"])
@pytest.mark.parametrize("rank", [0, 1])
def test_F3_a_killed_rank_ends_every_layout(
    workshop: Workshop, tmp_path: Path, layout: str, rank: int, record_property: Property
) -> None:
    folder = tmp_path / "run"
    process = start(workshop.write_config(folder), 2, ENDLESS, *LAYOUTS[layout])
    wait_for_checkpoint(folder, 4, process)
    ranks = ranks_of(process)
    everyone = descendants(process.pid)
    shared = {path for pid in everyone for path in shared_memory_of(pid)}
    killed = time.monotonic()
    os.kill(ranks[rank], signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - killed < 30
    assert process.returncode == 1
    assert f"rank {rank} (process {ranks[rank]}) was ended by SIGKILL" in said.decode(), said.decode()
    wait_until_gone(everyone)
    assert (status_of(folder).state, status_of(folder).exit_code) == ("failed", 1)
    assert not [path for path in shared if path.exists()]
    record_property("kills", 1)


def shared_memory_of(pid: int) -> set[Path]:
    """Files in /dev/shm that a process has in its memory."""
    mapped = {line.split(maxsplit=5)[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()}
    return {Path(name) for name in mapped if name.startswith("/dev/shm/")}


def own_copy(workshop: Workshop, folder: Path) -> Path:
    """The dataset of the domain in a folder of its own, to be spoilt."""
    for path in workshop.folder.glob("domain.*"):
        if path.is_file():
            shutil.copy(path, folder / path.name)
    return folder / "domain"


@pytest.mark.slow
@pytest.mark.parametrize(("spoil", "processes"), [("foreign ids", 1), ("cut", 1), ("cut", 2)])
def test_F7_tokens_that_change_while_a_run_goes_on(
    workshop: Workshop, tmp_path: Path, spoil: str, processes: int, record_property: Property
) -> None:
    folder, prefix = tmp_path / "run", own_copy(workshop, tmp_path)
    path = workshop.write_config(folder)
    process = start(path, processes, ENDLESS, f"data.sources.domain.paths=[{prefix}]")
    wait_for_checkpoint(folder, 4, process)
    tokens = IndexedDataset(prefix).tokens
    if spoil == "foreign ids":
        np.memmap(bin_path(prefix), tokens.dtype, "r+")[:] = np.iinfo(tokens.dtype).max
    else:
        os.truncate(bin_path(prefix), 0)
    _, said = process.communicate(timeout=60)
    status = status_of(folder)
    assert status.state == "failed"
    assert (status.message or "")[:60] in said.decode()
    assert (process.returncode, status.exit_code) == (ExitCode.INTEGRITY, ExitCode.INTEGRITY), status.message
    if spoil == "foreign ids":
        assert re.search(r"domain\.bin: document [\d,]+, token [\d,]+ of it \(byte", status.message or "")
    else:
        assert re.match(r"rank [01] \(process \d+\) was ended by SIGBUS, usually", status.message or ""), status.message
        assert re.search(r"domain\.bin: .* 0 bytes", status.message or ""), status.message
    assert complete_checkpoints(folder / "checkpoints")
    record_property("spoilt files", 1)


# The second save finds no memory: the address space may not grow from then on.
NO_MEMORY = """
import os, re, resource, sys
from pathlib import Path
from megatron_cpt.checkpoint.save import CheckpointWriter
from megatron_cpt.train import program
from megatron_cpt.train.stop import StopRequest

whole, saves = CheckpointWriter.begin, []

def begin(self, *arguments):
    saves.append(1)
    if len(saves) == 2:
        used = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (used, resource.RLIM_INFINITY))
    return whole(self, *arguments)

if __name__ == "__main__":
    CheckpointWriter.begin = begin
    with StopRequest() as request:
        sys.exit(program.main(sys.argv[1:], request))
"""


@pytest.mark.slow
def test_F9_a_save_that_finds_no_memory_leaves_the_checkpoint_before(
    one_rank: Ranks, workshop: Workshop, whole: Path, tmp_path: Path
) -> None:
    folder, script = tmp_path / "run", tmp_path / "program.py"
    script.write_text(NO_MEMORY)
    path = workshop.write_config(folder)
    done = run([sys.executable, script, path])
    assert done.code not in (0, 75)
    assert status_of(folder).state == "failed"
    assert [one.name for one in complete_checkpoints(folder / "checkpoints")] == ["step-00000004"]
    one_rank.call(train, path=path)
    assert records_of(folder) == records_of(whole)


@pytest.mark.slow
def test_F10_of_two_starts_at_once_one_trains(
    workshop: Workshop, whole: Path, tmp_path: Path, record_property: Property
) -> None:
    """Also where the dead, or another machine, left a lock file."""
    for number in range(3):
        folder = tmp_path / f"run{number}"
        path = workshop.write_config(folder)
        folder.mkdir()
        (folder / "lock").write_text("process 1 on another machine, and much more than is written now")
        both = [started([*DISPATCH, "train", path]) for _ in range(2)]
        codes = sorted(ended(one).code for one in both)
        # One that comes when the other is done finds nothing to do.
        assert codes in ([0, 2], [0, 0]), codes
        assert records_of(folder) == records_of(whole)
    record_property("pairs of starts", 3)
