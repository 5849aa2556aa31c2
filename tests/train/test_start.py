"""What each rank reads of datasets without a manifest before the first step, and who tells of a fault in them."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_cpt.config.load import load_config
from megatron_cpt.corpus import indexed
from megatron_cpt.corpus.columns import column_path
from megatron_cpt.corpus.indexed import IndexedDataset, bin_path, idx_path, manifest_path
from megatron_cpt.quality.select import HowMany, select
from megatron_cpt.runs.folder import ExitCode, read_status
from megatron_cpt.train.program import main, plan_on_ranks
from megatron_cpt.train.stop import StopRequest
from tests.ranks import Ranks
from tests.workshop import Workshop


def without_manifests(workshop: Workshop, folder: Path) -> dict[str, Path]:
    """Datasets of the workshop by name, without manifests, where none can be written."""
    folder.mkdir()
    prefixes = {name: folder / name for name in ("domain", "general", "domain.validation")}
    for name, prefix in prefixes.items():
        for path in (bin_path, idx_path):
            path(prefix).write_bytes(path(workshop.prefix(name)).read_bytes())
        # A folder in its place stops root, too, whom a read-only folder would not.
        manifest_path(prefix).mkdir()
    return prefixes


def write_run(workshop: Workshop, folder: Path, **data: Any) -> Path:
    """A config that reads such datasets in every way: one by its buckets, a selection of one, a validation set."""
    prefixes = without_manifests(workshop, folder)
    scores = np.arange(IndexedDataset(prefixes["domain"]).documents, dtype=np.float32)
    np.save(column_path(prefixes["domain"], "rank"), scores)
    half = select([str(prefixes["general"])], folder / "half", HowMany(tokens=2000), keep="random", seed=1).selection
    quality = {"score": "rank", "buckets": [0, 0.5, 1], "epochs": [2, 1]}
    sources = {
        "domain": {"paths": [str(prefixes["domain"])], "quality": quality},
        "general": {"paths": [str(half.path)], "role": "replay"},
    }
    sets = {"domain": {"paths": [str(prefixes["domain.validation"])], "role": "domain"}}
    return workshop.write_config(folder / "run", data={"sources": sources, **data}, validation={"sets": sets})


def reads(path: Path, local_rank: int | None = None) -> dict[str, Any]:
    """Job: plans a run. Which files of tokens this rank opened and which indices it hashed, and what it takes them for.

    Args:
        local_rank: this rank's number on its machine, as if there were several; None: as it is.
    """
    if local_rank is not None:
        os.environ["LOCAL_RANK"] = str(local_rank)
    opened, hashed = set[str](), list[str]()

    def listen(event: str, given: tuple[Any, ...]) -> None:
        if event == "open" and str(given[0]).endswith(".bin"):
            opened.add(Path(given[0]).name)

    sys.addaudithook(listen)
    indexed._IndexLayout.sha256 = noting(indexed._IndexLayout.sha256, hashed)  # type: ignore[method-assign]
    plan = plan_on_ranks(load_config(path))
    manifests = [manifest for _, manifest in plan.inputs.manifests()]
    return {"opened": opened, "hashed": sorted(set(hashed)), "manifests": manifests, "plan": plan.blend.describe(100)}


def noting(hash_index: Callable[[Any], str], hashed: list[str]) -> Callable[[Any], str]:
    """A method that hashes an index, and takes note of its file."""

    def noted(layout: Any) -> str:
        hashed.append(layout.path.name)
        return hash_index(layout)

    return noted


PACKED = {"packing": "best_fit", "attention": "within_documents"}


@pytest.mark.parametrize("data", [{}, PACKED], ids=["plain", "packed"])
def test_what_has_no_manifest_is_read_by_rank_0_alone(
    workshop: Workshop, tmp_path: Path, two_ranks: Ranks, data: dict[str, Any]
) -> None:
    """The others take it from rank 0; the first of each further machine compares the indices that it sees."""
    path = write_run(workshop, tmp_path / "data", **data)
    names = ("domain", "domain.validation", "general")
    first, second = two_ranks.call(reads, path=path)
    assert first["opened"] == {f"{name}.bin" for name in names}
    assert first["hashed"] == [f"{name}.idx" for name in names]
    assert (second["opened"], second["hashed"]) == (set(), [])
    assert (second["manifests"], second["plan"]) == (first["manifests"], first["plan"])
    assert all(manifest.only_sampled for manifest in second["manifests"])
    _, other_machine = two_ranks.call(reads, path=path, local_rank=0)
    assert (other_machine["opened"], other_machine["hashed"]) == (set(), first["hashed"])


def test_one_rank_of_a_machine_hashes_an_index(workshop: Workshop, tmp_path: Path, two_ranks: Ranks) -> None:
    """Of datasets with manifests. No token is read for a plan."""
    path = workshop.write_config(tmp_path / "run")
    first, second = two_ranks.call(reads, path=path)
    assert first["hashed"] == [
        f"{name}.idx" for name in ("domain", "domain.validation", "general", "general.validation")
    ]
    assert first["opened"] == second["opened"] == set()
    assert second["hashed"] == [] and second["plan"] == first["plan"]
    _, other_machine = two_ranks.call(reads, path=path, local_rank=0)
    assert other_machine["hashed"] == first["hashed"]


def ended(path: Path, folders: tuple[Path, Path]) -> tuple[int, str]:
    """Job: the program, each rank in its own folder. Its exit code, and what this rank said."""
    os.chdir(folders[int(os.environ["RANK"])])
    os.environ["LOCAL_RANK"] = "0"
    said = Path(f"said-{os.environ['RANK']}")
    with said.open("w") as sys.stderr, StopRequest() as request:
        code = main([str(path)], request)
    return code, said.read_text()


def relative(workshop: Workshop, folder: Path) -> Path:
    """A config that names a dataset relative to the working folder."""
    sources = {"domain": {"paths": ["data/domain"]}}
    return workshop.write_config(
        folder / "run", data={"sources": sources, "replay_ratio": None}, validation={"sets": {}}
    )


@pytest.mark.parametrize("fault", ["missing", "other"])
def test_a_fault_that_one_machine_has_is_told_by_its_rank(
    workshop: Workshop, tmp_path: Path, two_ranks: Ranks, fault: str
) -> None:
    machines = (tmp_path / "one", tmp_path / "two")
    for machine in machines:
        machine.mkdir()
        prefixes = without_manifests(workshop, machine / "data")
    if fault == "missing":
        bin_path(prefixes["domain"]).unlink()
    else:
        for path in (bin_path, idx_path):
            path(prefixes["domain"]).write_bytes(path(prefixes["general"]).read_bytes())
    answers = two_ranks.call(ended, timeout=60, path=relative(workshop, tmp_path), folders=machines)
    code = ExitCode.BAD_INPUT if fault == "missing" else ExitCode.INTEGRITY
    status = read_status(tmp_path / "run" / "status.json")
    assert answers[1][0] == code and status is not None and status.exit_code == code
    says = "domain.bin: is not there" if fault == "missing" else "The copies of two machines differ"
    assert says in answers[1][1] and says in (status.message or "")
    assert f"on {socket.gethostname()} (rank 1), " in answers[1][1]
    assert answers[0] == (ExitCode.OTHER, "")


@pytest.mark.ci
def test_a_fault_that_rank_0_finds_is_told_once(workshop: Workshop, tmp_path: Path) -> None:
    """Under a plain torchrun. The ranks' store is rank 0's, and ends with it."""
    prefixes = without_manifests(workshop, tmp_path / "data")
    content = bytearray(idx_path(prefixes["domain"]).read_bytes())
    content[40] ^= 1  # a length
    idx_path(prefixes["domain"]).write_bytes(content)
    words = ("--standalone", "--nproc-per-node=2", "-m", "megatron_cpt.train", str(relative(workshop, tmp_path)))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    status = read_status(tmp_path / "run" / "status.json")
    assert status is not None and status.exit_code == ExitCode.INTEGRITY, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("megatron-cpt train: ")]
    assert len(told) == 1 and "domain.idx" in told[0], done.stderr
    ours = done.stderr.partition("torch/distributed/elastic")[0]
    assert "Traceback" not in ours, done.stderr
