"""C: conversions of models that are killed, short of room, done twice at once, or given links."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pytest

from megatron_cpt.checkpoint.hf_folder import HASHES, INDEX, SINGLE, open_hf_tensors, refuse_altered
from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.errors import BadInput, IntegrityFault
from tests.params import quick_among
from tests.reliability.running import DISPATCH, command, digests, ended, places, run, started
from tests.reliability.test_preparation import small_disk
from tests.workshop import Workshop

Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def checkpoint(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workshop's model as a checkpoint."""
    folder = tmp_path_factory.mktemp("converted") / "model"
    assert main(["convert", "from-hf", str(workshop.hf), str(folder)]) == 0
    return folder


def words_of(action: str, workshop: Workshop, checkpoint: Path, output: Path) -> list[str]:
    """The words of a conversion."""
    source = {
        "from-hf": ["convert", "from-hf", workshop.hf, output],
        "to-hf": ["convert", "to-hf", checkpoint, output],
        "extend": ["convert", "extend", workshop.hf, output, "--new-tokens", "gradients"],
        "average": ["average", checkpoint, workshop.hf, "--output", output],
    }
    return list(map(str, source[action]))


@pytest.mark.ci
def test_C14_two_exports_into_one_folder(
    workshop: Workshop, checkpoint: Path, tmp_path: Path, record_property: Record
) -> None:
    """The second is refused while the first writes, and the first writes what one alone writes."""
    words = words_of("to-hf", workshop, checkpoint, tmp_path / "alone")
    passed = places([*DISPATCH, *words], tmp_path, tmp_path / "log")
    assert any(place.startswith("fsync .alone.partial/") for place in passed)
    output = tmp_path / "hf"
    first = started([*DISPATCH, *words_of("to-hf", workshop, checkpoint, output)])
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob(".hf.partial/*")) and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(first.pid, signal.SIGSTOP)
    assert not output.exists(), "the first was stopped too late to show anything"
    second = command(*words_of("to-hf", workshop, checkpoint, output))
    os.kill(first.pid, signal.SIGCONT)
    assert second.code == 2 and f"{output}: is being written by process {first.pid}" in second.err
    assert ended(first).code == 0
    refuse_altered(output)
    left_out = {"README.md", HASHES}  # the card has the folder's name
    alone, both = digests(tmp_path / "alone"), digests(output)
    assert alone.keys() == both.keys()
    assert {name for name in alone if alone[name] != both[name]} <= left_out
    assert not list(tmp_path.glob(".hf.*"))
    record_property("pairs of writers", 1)


LONG = {"to-hf": 20, "average": 10, "from-hf": 10, "extend": 10}


@pytest.mark.ci
@pytest.mark.parametrize(
    ("action", "most"), [("average", 1), *(pytest.param(*one, marks=pytest.mark.slow) for one in LONG.items())]
)
@pytest.mark.timeout(3000)
def test_C14_killed_at_its_writes(
    workshop: Workshop, checkpoint: Path, tmp_path: Path, action: str, most: int, record_property: Record
) -> None:
    """Absent or whole; and the same command again writes it, and leaves nothing of the dead."""
    folder, output = tmp_path / "out", tmp_path / "out" / "model"
    folder.mkdir()
    words = [*DISPATCH, *words_of(action, workshop, checkpoint, output)]
    passed = places(words, folder, tmp_path / "log")
    whole = digests(folder)
    kills = sorted({round(at) for at in np.linspace(len(passed) - 3, 2, most)})
    for at in kills:
        shutil.rmtree(folder)
        folder.mkdir()
        killed = run(words, failpoint={"folder": folder, "at": at})
        assert killed.code != 0, f"{at}: {passed[at - 1]}"
        if output.exists():
            assert digests(output).keys() == {name.removeprefix("model/") for name in whole}, passed[at - 1]
            continue
        again = run(words)
        assert again.code == 0, f"{passed[at - 1]}: {again.err}"
        assert digests(folder).keys() == whole.keys(), passed[at - 1]
    record_property("kills", len(kills))


@pytest.mark.parametrize(
    "action", quick_among(["from-hf", "to-hf", "extend", "average"], ["to-hf"], ["from-hf", "extend", "average"])
)
@pytest.mark.parametrize("size", [30_000, pytest.param(160_000, marks=pytest.mark.slow)])
def test_C14_a_full_disk(
    workshop: Workshop, checkpoint: Path, tmp_path: Path, action: str, size: int, record_property: Record
) -> None:
    """Too small for the weights, or for what stands beside them: one message, nothing left."""
    disk = tmp_path / "disk"
    with small_disk(disk, size):
        done = command(*words_of(action, workshop, checkpoint, disk / "model"))
        assert done.code == 1, done
        assert "Traceback" not in done.err
        if size == 30_000:
            assert f"{disk}/model: needs " in done.err and "bytes are free on its disk" not in done.out
        assert list(disk.iterdir()) == []
    record_property("full disks", 1)


def test_C10_links_out_of_the_folder(workshop: Workshop, tmp_path: Path, record_property: Record) -> None:
    """Of an index, of the single file; a hub's cache is made of links, to its own blobs."""
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(workshop.hf, elsewhere)
    names = {"model.embed_tokens.weight": "part.safetensors"}
    for kind in ("index", "single"):
        folder = tmp_path / kind
        shutil.copytree(workshop.hf, folder)
        (folder / SINGLE).unlink()
        linked = folder / ("part.safetensors" if kind == "index" else SINGLE)
        linked.symlink_to(elsewhere / SINGLE)
        if kind == "index":
            (folder / INDEX).write_bytes(orjson.dumps({"weight_map": names}))
        with pytest.raises(BadInput, match="link out of"), open_hf_tensors(folder):
            pass
    hub = tmp_path / "models--a--b"
    (hub / "blobs").mkdir(parents=True)
    snapshot = hub / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for path in workshop.hf.iterdir():
        shutil.copyfile(path, hub / "blobs" / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    with open_hf_tensors(snapshot) as tensors:
        assert tensors.names
    record_property("bad inputs", 2)


@pytest.mark.ci
def test_C6_an_export_that_was_changed_is_refused(
    workshop: Workshop, checkpoint: Path, tmp_path: Path, record_property: Record
) -> None:
    """By training, conversions and verify; the card may be changed, and the check be taken away."""
    output = tmp_path / "hf"
    assert main(words_of("to-hf", workshop, checkpoint, output)) == 0
    (output / "README.md").write_text("another card")
    refuse_altered(output)
    content = bytearray((output / SINGLE).read_bytes())
    content[-100] ^= 1
    (output / SINGLE).write_bytes(content)
    for words in (["convert", "verify", checkpoint, output], ["convert", "from-hf", output, tmp_path / "model"]):
        assert main(list(map(str, words))) == 3
    with pytest.raises(IntegrityFault, match=rf"{SINGLE}: not what was written, by the hashes of {HASHES}"):
        refuse_altered(output)
    config = workshop.write_config(tmp_path / "run", model={"hf": str(output)})
    done = run([*DISPATCH, "train", config, "--nproc", "2"])
    assert done.code == 3 and f"{SINGLE}: not what was written" in done.err, done.err
    (output / HASHES).unlink()
    assert main(["convert", "from-hf", str(output), str(tmp_path / "model")]) == 0
    record_property("flips", 1)
    record_property("flips refused", 1)
