"""Folders that several ranks write are, byte for byte, those that one rank writes."""

import platform
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_cpt.checkpoint import hf_export
from megatron_cpt.checkpoint.convert import load_model
from megatron_cpt.checkpoint.hf_dtypes import TensorDtypes
from megatron_cpt.checkpoint.hf_folder import HASHES, INDEX
from megatron_cpt.config.schema import ParallelSettings, Precision
from megatron_cpt.families.shape import read_shape
from megatron_cpt.parallel import groups
from tests.checkpoint.hf_models import write_model
from tests.families.folders import MODELS
from tests.ranks import Ranks

SHARD_BYTES = 40_000


def export(
    folder: Path, output: Path, parallel: dict[str, int], precision: Precision = "fp32", nodes: tuple[str, ...] = ()
) -> list[str]:
    """A job: the folder into a layout and out again. Returns the files that this rank wrote, in their order."""
    groups.init_model_parallel(ParallelSettings(**parallel))
    shape = read_shape(folder)
    written: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        write = hf_export.write_shard
        patch.setattr(hf_export, "write_shard", lambda path, tensors: (written.append(path.name), write(path, tensors)))
        if nodes:
            patch.setattr(platform, "node", lambda: nodes[groups.rank()])
        hf_export.export_hf(load_model(folder, shape, precision), shape, folder, output, shard_bytes=SHARD_BYTES)
    return written


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("kind", "parallel"),
    [
        ("llama", {"tensor": 2}),
        ("llama", {"pipeline": 2}),
        ("llama", {}),
        ("llama_tied", {"pipeline": 2}),
        ("gpt_neox", {"tensor": 2}),
        ("qwen3_moe_mixed", {"expert": 2}),
        ("mixtral", {"tensor": 2}),
        ("qwen3_moe_mixed", {"pipeline": 2}),
        ("mistral3", {"pipeline": 2}),  # with tensors beside the language model, which rank 0 writes
    ],
)
def test_two_ranks_write_the_bytes_of_one(
    one_rank: Ranks, two_ranks: Ranks, tmp_path: Path, kind: str, parallel: dict[str, int]
) -> None:
    folder, alone, shared = write_model(tmp_path / "hf", MODELS[kind]), tmp_path / "alone", tmp_path / "shared"
    [expected] = one_rank.call(export, folder=folder, output=alone, parallel={})
    first, second = two_ranks.call(export, folder=folder, output=shared, parallel=parallel)
    assert len(expected) > 3
    assert sorted(first + second) == sorted(expected)
    # Stages have files of their own, of which one may have more; other ranks share all files.
    assert min(len(first), len(second)) >= (1 if "pipeline" in parallel else len(expected) // 2)
    assert contents(shared) == contents(alone)
    assert {INDEX, HASHES} < set(contents(alone))


def test_bf16_weights_are_sent_unchanged(one_rank: Ranks, two_ranks: Ranks, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf", MODELS["llama"], torch.bfloat16)
    one_rank.call(export, folder=folder, output=tmp_path / "alone", parallel={}, precision="bf16")
    two_ranks.call(export, folder=folder, output=tmp_path / "shared", parallel={"tensor": 2}, precision="bf16")
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


def test_files_are_spread_over_nodes_before_they_are_spread_over_ranks(four_ranks: Ranks, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf", MODELS["llama"])
    nodes = ("one", "one", "two", "two")
    written = four_ranks.call(export, folder=folder, output=tmp_path / "out", parallel={"tensor": 2}, nodes=nodes)
    writers = dict(sorted((name, rank) for rank, names in enumerate(written) for name in names))
    assert list(writers.values())[:4] == [0, 2, 1, 3]


def failed_export(folder: Path, output: Path, fault: str) -> str:
    """A job: an export that rank 1 cannot write. Returns what this rank raises."""
    groups.init_model_parallel(ParallelSettings())
    shape = read_shape(folder)
    model = load_model(folder, shape, "fp32")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if groups.rank() == 1 and fault == "no room":
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    if groups.rank() == 1 and fault == "overflow":
        with torch.no_grad():
            for parameter in model[0].parameters():
                parameter.fill_(70_000.0)
    arguments: dict[str, Any] = {"dtypes": TensorDtypes("float16")} if fault == "overflow" else {}
    try:
        hf_export.export_hf(model, shape, folder, output, shard_bytes=SHARD_BYTES, **arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return "written"


@pytest.mark.parametrize(
    ("fault", "named"), [("no room", "OSError: [Errno 27] File too large"), ("overflow", "NumericsFault: ")]
)
def test_the_error_of_one_rank_ends_all_and_leaves_no_folder(
    two_ranks: Ranks, tmp_path: Path, fault: str, named: str
) -> None:
    folder = write_model(tmp_path / "hf", MODELS["llama"])
    said = two_ranks.call(failed_export, folder=folder, output=tmp_path / "out", fault=fault)
    assert said[1].startswith(named)
    assert said[0] == f"RankFailed: rank 1: {said[1].partition(': ')[2]}"
    assert list(tmp_path.iterdir()) == [folder]
