"""What one rank of many asks of the file system and reads, at a start and for a checkpoint (docs/performance.md).

    python benchmarks/many_ranks.py

A rank of 8, 128 and 1,024 is played, each in a process of its own: its collectives are over at once, as in `plan
--simulate`, and the program's own functions run on real, small files. Calls are those of the program for its files:
opened, looked for, listed, removed. Tensor parallel size 8: 1, 16 and 128 replicas. Two shards a rank. A step has 1,024
sequences of 4,096 tokens.
The ratio is the calls of rank 9 of 1,024 over those of rank 1 of 8: what does not grow with the ranks has 1.
"""

import builtins
import io
import json
import multiprocessing
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from machine import machine, print_result
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_cpt.checkpoint import hf_weights, load
from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.corpus.indexed import IndexedWriter, idx_path, manifest_path
from megatron_cpt.corpus.manifest import dump_described, load_described, open_dataset
from megatron_cpt.corpus.stream import TokenStream
from megatron_cpt.data.loader import Slots, TrainingData
from megatron_cpt.families.shape import read_shape
from megatron_cpt.model.build import ModelOptions, build_model
from megatron_cpt.parallel import groups
from megatron_cpt.planning.text_tables import columns
from megatron_cpt.runs.folder import file_sha256
from megatron_cpt.simulation.gpu_kernels import start_fake_ranks

WORLDS, TENSOR, DATASETS = (8, 128, 1024), 8, 20
SEQUENCES, LENGTH = 1024, 4096
RANKS = ("0", "of the first replica", "of another replica")


class Calls:
    """Counts what this process asks of the file system below a folder, and the bytes of files that it opens to read."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls, self.bytes = str(folder), 0, 0

    def note(self, path: object, reads: bool = False) -> None:
        """Takes note of a call."""
        if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.folder):
            self.calls += 1
            self.bytes += os.lstat(path).st_size if reads else 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Counts inside the block."""
        before: list[tuple[Any, str, Any]] = []

        def replace(owner: Any, name: str, reads: Callable[[tuple[Any, ...]], bool]) -> None:
            call = getattr(owner, name)

            def noted(path: Any = ".", *given: Any, **named: Any) -> Any:
                result = call(path, *given, **named)
                self.note(path, reads(given))
                return result

            before.append((owner, name, call))
            setattr(owner, name, noted)

        for name in ("stat", "scandir", "listdir", "unlink"):
            replace(os, name, lambda given: False)
        for owner in (io, builtins):
            replace(owner, "open", lambda given: not given or "r" in str(given[0]))
        try:
            yield
        finally:
            for owner, name, call in reversed(before):
                setattr(owner, name, call)


def main() -> None:
    """Prints the table and the result."""
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        described = write_files(folder)
        found = {}
        for world in WORLDS:
            for kind, rank in zip(RANKS, (0, 1, TENSOR + 1), strict=True):
                if rank < world:
                    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as process:
                        found[world, kind] = process.submit(counts, str(folder), described, rank, world).result()
    parts = list(next(iter(found.values())))
    heading = ["ranks", "rank", *parts]
    rows = [[f"{world:,}", kind, *(told(one[part]) for part in parts)] for (world, kind), one in found.items()]
    print("\n".join(columns([heading, *rows], "rl" + "r" * len(parts))))
    largest, smallest = found[WORLDS[-1], RANKS[2]], found[WORLDS[0], RANKS[1]]
    ratio = sum(calls for calls, _ in largest.values()) / sum(calls for calls, _ in smallest.values())
    details = {f"{world}, {kind}": one for (world, kind), one in found.items()}
    print_result("many_ranks", ratio, "calls of a rank of 8", details)


def told(count: tuple[int, int]) -> str:
    """Calls and bytes in a cell."""
    return f"{count[0]:,} calls, {count[1] / 1e6:,.2f} MB"


def write_files(folder: Path) -> bytes:
    """A model with weights, datasets with manifests, and such that can have none; what rank 0 tells of the latter."""
    sizes = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 2, "vocab_size": 8192}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "tie_word_embeddings": False}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(folder / "hf")
    for prefix in (*prefixes(folder, "data"), *prefixes(folder, "bare")):
        with IndexedWriter(prefix, "uint16") as writer:
            writer.add_many(np.zeros(200_000, np.int64), np.full(20_000, 10))
        if prefix.name.startswith("bare"):
            manifest_path(prefix).mkdir()  # in its place, as on a read-only share
        open_dataset(prefix)
    return dump_described([open_dataset(prefix) for prefix in prefixes(folder, "bare")])


def prefixes(folder: Path, kind: str) -> list[Path]:
    """Those of the datasets of a kind."""
    return [folder / f"{kind}-{number}" for number in range(DATASETS)]


class InTurns:
    """An order that takes one sequence of each source after the other."""

    def locate(self, indices: np.ndarray) -> Any:
        """Source and sequence of each index."""
        return SimpleNamespace(source=(indices % DATASETS).astype(np.int32), sequence=indices // DATASETS)


def counts(scratch: str, described: bytes, rank: int, world: int) -> dict[str, tuple[int, int]]:
    """Calls and bytes of one rank, by what it does."""
    folder = Path(scratch)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank % TENSOR)}
    start_fake_ranks(rank, world)
    parallel = ParallelSettings(tensor=TENSOR)
    groups.init_model_parallel(parallel)
    # In a real world the others wait for rank 0 in the store.
    load.first_on_rank_zero = nullcontext  # type: ignore[assignment]
    calls, found = Calls(folder), dict[str, tuple[int, int]]()

    def count(part: str, do: Callable[[], object], read: Callable[[], int] = lambda: 0) -> None:
        calls.calls = calls.bytes = 0
        with calls.counted():
            do()
        found[part] = (calls.calls, calls.bytes + read())

    streams: list[TokenStream] = []
    # What is mapped and not hashed is not read.
    not_read = 0 if rank % TENSOR == 0 else -sum(idx_path(one).stat().st_size for one in prefixes(folder, "data"))
    count(
        "open 20 datasets",
        lambda: streams.extend(TokenStream([prefix]) for prefix in prefixes(folder, "data")),
        lambda: not_read,
    )
    known = load_described(described) if rank else None
    count(
        "20 without manifest",
        lambda: [TokenStream([prefix], described=known) for prefix in prefixes(folder, "bare")],
        lambda: not_read,
    )
    slots = Slots(SEQUENCES, 1, groups.data_rank(), groups.data_size())
    data = TrainingData(InTurns(), streams, slots, LENGTH, seed=1)  # type: ignore[arg-type]
    for stream in streams:
        stream.read(0, 1)  # maps it
    copied, copy = list[int](), TokenStream.copy
    TokenStream.copy = lambda self, start, out: (copied.append(2 * len(out)), copy(self, start, out))[1]  # type: ignore[method-assign]
    count("tokens of a step", lambda: deque(data.global_batch(0, torch.device("cpu")), 0), lambda: sum(copied))
    shape = read_shape(folder / "hf")
    groups.seed_everything(1)
    model = build_model(shape, ModelOptions(sequence_length=64, parallel=parallel, on_gpu=False))
    filled = []
    fill = hf_weights.fill
    hf_weights.fill = lambda parameter, *rest: (filled.append(parameter.nbytes), fill(parameter, *rest))[1]  # type: ignore[assignment]
    count(
        "read weights",
        lambda: hf_weights.load_hf_weights(model, shape, folder / "hf", by_one_replica=True),
        lambda: sum(filled),
    )
    checkpoint = write_checkpoint(folder / f"step-{rank}-{world}", rank, world)
    count("seal a checkpoint", lambda: load.seal(checkpoint))
    for number in range(world):  # those of the other ranks, which have removed theirs
        (checkpoint / f"hashes-{number:05}.json").unlink(missing_ok=True)
    hashes = {str(path.relative_to(checkpoint)): file_sha256(path) for path in checkpoint.rglob("*") if path.is_file()}
    hashes.pop("complete.json", None)
    load.write_marker(checkpoint, hashes)
    count("verify a checkpoint", lambda: load.verify(checkpoint))
    return found


def write_checkpoint(checkpoint: Path, rank: int, world: int) -> Path:
    """A folder as the ranks leave it before it is sealed: two shards of 1 kB a rank, a table that grows with them."""
    (checkpoint / "shards").mkdir(parents=True)
    (checkpoint / "hf").mkdir()
    for number in range(world):
        for part in range(2):
            (checkpoint / "shards" / f"__{number}_{part}.distcp").write_bytes(bytes(1000))
        hashes = {f"shards/__{number}_{part}.distcp": "0" for part in range(2)}
        (checkpoint / f"hashes-{number:05}.json").write_text(json.dumps(hashes))
    (checkpoint / "shards" / ".metadata").write_bytes(bytes(20_000 * world))
    (checkpoint / "position.json").write_text("{}")
    return checkpoint


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
