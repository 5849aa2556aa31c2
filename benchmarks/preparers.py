"""The contenders of prepare.py, each run in a process of its own: `python -m benchmarks.preparers NAME ...`.

Two are Megatron-LM's ways, rebuilt on Megatron-Core's own IndexedDatasetBuilder:

pool   tools/preprocess_data.py: a pool of worker processes that parse and tokenize document by document with
       transformers' fast tokenizer, and one parent that writes.
fast   tools/preprocess_data_fast.py: gigatoken over the whole file in memory, EOD put behind each document with
       awkward, the arrays flattened by a pool of processes. Two faults of that script are mended, so that it gives
       a dataset at all: its EOD needs an import that it lacks, and its document bounds count tokens instead of
       documents. It asks for 128 processes; here it gets as many as the others.
"""

import argparse
import hashlib
import importlib.util
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

import megatron_cpt.parallel  # noqa: F401  (gives Megatron-Core a CPU platform)

END_OF_TEXT = "<|endoftext|>"
BATCH_BYTES = 4_000_000


@dataclass(frozen=True)
class Measured:
    """One contender's figures."""

    seconds: float
    """Wall time, from the end of its imports to its files."""
    cpu_seconds: float
    """Processor time of it and its workers: what a loaded machine changes less."""
    peak_bytes: int
    """Peak resident memory of the process, and of its largest worker times the workers; pages that forked workers
    share with it are counted for each."""
    data_sha256: str
    """Of the .bin; empty where nothing is written."""
    index_sha256: str
    """Of the .idx."""


@dataclass(frozen=True)
class Task:
    """What every contender is given."""

    corpus: Path
    tokenizer: Path
    output: Path
    workers: int


def ours(task: Task, fast: bool) -> Callable[[], None]:
    """`megatron-cpt prepare` in input order."""
    from megatron_cpt.preparation.job import PrepareSettings  # noqa: PLC0415
    from megatron_cpt.preparation.prepare import prepare  # noqa: PLC0415

    if fast and importlib.util.find_spec("gigatoken"):
        importlib.import_module("gigatoken")
    settings = PrepareSettings(order="as_read", keep_duplicates=True)

    def work() -> None:
        prepare([str(task.corpus)], task.tokenizer, task.output, settings, workers=task.workers, fast=fast)

    return work


class PoolEncoder:
    """A worker of the pool: it holds its tokenizer on the class, as that script's Encoder does."""

    tokenizer: Any = None

    @classmethod
    def start(cls, folder: Path) -> None:
        from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

        file = str(folder / "tokenizer.json")
        cls.tokenizer = PreTrainedTokenizerFast(tokenizer_file=file, eos_token=END_OF_TEXT)

    @classmethod
    def encode(cls, line: str) -> list[int]:
        ids: list[int] = cls.tokenizer(json.loads(line)["text"], add_special_tokens=False).input_ids
        return [*ids, cls.tokenizer.eos_token_id]


def pool(task: Task) -> Callable[[], None]:
    """Megatron-LM's preprocess_data.py."""
    import torch  # noqa: PLC0415
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder  # noqa: PLC0415

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    PoolEncoder.start(task.tokenizer)

    def work() -> None:
        builder = IndexedDatasetBuilder(f"{task.output}.bin", dtype=DType.optimal_dtype(len(PoolEncoder.tokenizer)))
        with (
            task.corpus.open(encoding="utf-8") as lines,
            multiprocessing.Pool(task.workers, PoolEncoder.start, (task.tokenizer,)) as workers,
        ):
            for ids in workers.imap(PoolEncoder.encode, lines, 32):
                builder.add_document(torch.tensor(ids, dtype=torch.int64), [len(ids)])
            builder.finalize(f"{task.output}.idx")
            workers.close()
            workers.join()

    return work


def fast(task: Task) -> Callable[[], None]:
    """Megatron-LM's preprocess_data_fast.py."""
    import awkward  # noqa: PLC0415
    import gigatoken  # noqa: PLC0415
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder  # noqa: PLC0415

    os.environ["RAYON_NUM_THREADS"] = str(task.workers)

    def work() -> None:
        content = orjson.loads((task.tokenizer / "tokenizer.json").read_bytes())
        eod = next(token["id"] for token in content["added_tokens"] if token["content"] == END_OF_TEXT)
        backend = gigatoken.Tokenizer(str(task.tokenizer / "tokenizer.json"))
        documents = backend.encode_files(gigatoken.JsonlFileSource([task.corpus], field="text"))
        ends = awkward.singletons(awkward.Array(np.full(len(documents), eod, np.uint32)))
        documents = awkward.concatenate([documents, ends], axis=1)
        builder = IndexedDatasetBuilder(f"{task.output}.bin", dtype=DType.optimal_dtype(eod + 1))
        bounds = np.linspace(0, len(documents), task.workers + 1, dtype=int)
        chunks = [(documents[bounds[n] : bounds[n + 1]], builder.dtype) for n in range(task.workers)]
        with multiprocessing.Pool(task.workers) as workers:
            for flat, lengths in workers.map(_flattened, chunks):
                builder.data_file.write(flat.tobytes(order="C"))
                first = len(builder.sequence_lengths)
                builder.sequence_lengths.extend(lengths.tolist())
                builder.document_indices.extend(range(first + 1, first + 1 + len(lengths)))
        builder.finalize(f"{task.output}.idx")

    return work


def _flattened(chunk: tuple[Any, Any]) -> tuple[np.ndarray, np.ndarray]:
    import awkward  # noqa: PLC0415

    documents, dtype = chunk
    return np.asarray(awkward.flatten(documents), dtype=dtype), np.asarray(awkward.num(documents, axis=1))


def limit(task: Task) -> Callable[[], None]:
    """JSON parsing and gigatoken alone, nothing written: no way that goes through Python can be faster."""
    import awkward  # noqa: F401, PLC0415  (gigatoken would import it at its first batch, while time runs)
    import gigatoken  # noqa: PLC0415

    os.environ["RAYON_NUM_THREADS"] = str(task.workers)

    def work() -> None:
        backend = gigatoken.Tokenizer(str(task.tokenizer / "tokenizer.json"))
        batch: list[str] = []
        size = 0
        with task.corpus.open("rb") as lines:
            for line in lines:
                batch.append(orjson.loads(line)["text"])
                size += len(line)
                if size > BATCH_BYTES:
                    backend.encode_batch(batch)
                    batch, size = [], 0
        backend.encode_batch(batch)

    return work


CONTENDERS: dict[str, Callable[[Task], Callable[[], None]]] = {
    "ours": lambda task: ours(task, fast=True),
    "ours-tokenizers": lambda task: ours(task, fast=False),
    "pool": pool,
    "fast": fast,
    "limit": limit,
}


def measured(work: Callable[[], None], task: Task) -> Measured:
    """Does the work and takes its figures."""
    wall, before = time.perf_counter(), _processor()
    work()
    seconds, processor = time.perf_counter() - wall, _processor() - before
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return Measured(
        seconds=seconds,
        cpu_seconds=processor,
        peak_bytes=1024 * (own.ru_maxrss + task.workers * children.ru_maxrss),
        data_sha256=_sha256(Path(f"{task.output}.bin")),
        index_sha256=_sha256(Path(f"{task.output}.idx")),
    )


def _processor() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("contender", choices=CONTENDERS)
    for name in ("corpus", "tokenizer", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("workers", type=int)
    words = parser.parse_args()
    task = Task(words.corpus, words.tokenizer, words.output, words.workers)
    print(json.dumps(asdict(measured(CONTENDERS[words.contender](task), task))))


if __name__ == "__main__":
    main()
