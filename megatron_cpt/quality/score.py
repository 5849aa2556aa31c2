"""Scoring every document of datasets: PREFIX.NAME.npy beside each (scores.py).

1. A method says, before anything is learned, what will decide its numbers (Method.how).
2. Datasets that have this very score already are left alone; if all have, nothing is learned.
3. The method learns from its references, then datasets are read in chunks that threads score.

Memory holds what was learned and a few chunks. A call that was killed goes on with the next dataset.
"""

import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.corpus.chunks import DocumentChunk, dataset_chunks
from megatron_cpt.corpus.scores import (
    ScoreRecord,
    check_name,
    is_scored,
    refuse_other_score,
    whole_record,
    write_score,
)
from megatron_cpt.corpus.selection import SUFFIX, SelectedDataset, whole_dataset
from megatron_cpt.corpus.stream import expand_paths

Scorer = Callable[[DocumentChunk], npt.NDArray[np.float32]]
"""A chunk to the score of each of its documents, float32[documents]. Threads call it at once."""
T = TypeVar("T")


@dataclass(frozen=True)
class Method:
    """A way to score."""

    how: dict[str, Any]
    """What decides the numbers: method, settings, references."""
    learn: Callable[[Path], Scorer]
    """Learns from the references; the folder is for what is only needed meanwhile."""


@dataclass(frozen=True)
class Scored:
    """What became of a dataset."""

    prefix: Path
    record: ScoreRecord
    reused: bool
    """The score was there, made in the same way."""


def open_datasets(paths: Sequence[str]) -> list[SelectedDataset]:
    """The datasets to be scored. Raises BadInput for a selection, or for datasets of different tokenizers:
    their scores could not be compared."""
    for path in paths:
        if path.endswith(SUFFIX):
            raise BadInput(Fault(path, "is a selection; datasets are scored whole.", "Name its datasets."))
    datasets = [whole_dataset(path) for path in expand_paths(paths)]
    first = datasets[0].manifest
    for dataset in datasets[1:]:
        if dataset.manifest.tokenizer != first.tokenizer:
            rule = f"is not made with the tokenizer of {datasets[0].prefix}: their scores could not be compared."
            raise BadInput(Fault(str(dataset.prefix), rule, "Score them in two calls."))
    return datasets


def score(
    datasets: Sequence[SelectedDataset],
    name: str,
    method: Method,
    *,
    workers: int = 1,
    progress: bool = False,
    overwrite: bool = False,
) -> list[Scored]:
    """Writes the score of each dataset that does not have it. Raises as the method does, and as `already` does."""
    done = already(datasets, name, method.how, overwrite)
    scorer = None
    if not all(done.values()):
        with tempfile.TemporaryDirectory(prefix=".scoring-", dir=datasets[0].prefix.parent) as folder:
            scorer = method.learn(Path(folder))
    for part in datasets:
        if scorer is not None and not done[part.prefix]:
            chunks = _scored(part, scorer, workers, progress)
            write_score(part.prefix, name, part.manifest, chunks, method.how)
    return [Scored(part.prefix, whole_record(part.prefix, name), done[part.prefix]) for part in datasets]


def already(datasets: Sequence[SelectedDataset], name: str, how: dict[str, Any], overwrite: bool) -> dict[Path, bool]:
    """Which datasets have this very score. Raises BadInput where one has another of this name, unless that may be
    replaced (`overwrite`)."""
    check_name(name)
    done = {part.prefix: is_scored(part.prefix, name, part.manifest, how) for part in datasets}
    for prefix in (prefix for prefix, whole in done.items() if not (whole or overwrite)):
        refuse_other_score(prefix, name)
    return done


def _scored(part: SelectedDataset, scorer: Scorer, workers: int, progress: bool) -> Iterator[npt.NDArray[np.float32]]:
    with tqdm(total=part.tokens, unit="token", unit_scale=True, disable=not progress, desc=part.prefix.name) as bar:

        def work(chunk: DocumentChunk) -> tuple[npt.NDArray[np.float32], int]:
            return scorer(chunk), len(chunk.tokens)

        for scores, tokens in in_order(work, dataset_chunks(part), workers):
            bar.update(tokens)
            yield scores


def in_order(work: Callable[[DocumentChunk], T], chunks: Iterable[DocumentChunk], workers: int) -> Iterator[T]:
    """The results of chunks in their order, `workers` of them worked on at a time and as many waiting."""
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for chunk in chunks:
            waiting.append(pool.submit(work, chunk))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
