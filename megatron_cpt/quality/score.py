"""Scores of documents: PREFIX.NAME.npy beside each dataset (corpus/scores.py).

A score comes from a method (ngram.py, learned.py, a model) or from a number that stands in the JSON already (field.py).
References are texts that a method learns from.
"""

import hashlib
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.corpus.indexed import idx_path
from megatron_cpt.corpus.manifest import Manifest
from megatron_cpt.corpus.parts import named_by
from megatron_cpt.corpus.scores import ScoreRecord, check_name, is_scored, refuse_other_score, whole_record, write_score
from megatron_cpt.corpus.selection import SUFFIX, SelectedDataset, load_selection, whole_dataset
from megatron_cpt.corpus.stream import DocumentChunk, dataset_chunks, expand_paths, tokenizer_of
from megatron_cpt.preparation.inputs import input_files
from megatron_cpt.preparation.job import PrepareSettings
from megatron_cpt.preparation.prepare import prepare
from megatron_cpt.quality.engines import Engine, OneMachine
from megatron_cpt.runs.folder import file_sha256

Scorer = Callable[[DocumentChunk], npt.NDArray[np.float32]]
"""A chunk to the score of each of its documents, float32[documents]. Threads call it at once."""
T = TypeVar("T")
HERE = OneMachine()


@dataclass(frozen=True)
class Method:
    """A way to score."""

    how: dict[str, Any]
    """What decides the numbers: method, settings, references."""
    learn: Callable[[Path, Engine], Scorer]
    """Learns from the references; the folder is for what is only needed meanwhile. The scorer can be pickled."""


@dataclass(frozen=True)
class Scored:
    """What became of a dataset."""

    prefix: Path
    record: ScoreRecord
    reused: bool
    """The score was there, made in the same way."""
    missing: int = 0
    """Documents that got the score of those without a number, where it was computed now."""


def open_datasets(paths: Sequence[str]) -> list[SelectedDataset]:
    """The datasets to be scored, each once however often it is named: what is learned of all would count it twice.

    Raises BadInput for a selection, or for datasets of different tokenizers: their scores could not be compared.
    """
    for path in paths:
        if path.endswith(SUFFIX):
            raise BadInput(Fault(path, "is a selection; datasets are scored whole.", "Name its datasets."))
    datasets = [whole_dataset(path) for path in {path.resolve(): path for path in expand_paths(paths)}.values()]
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
    engine: Engine = HERE,
    *,
    overwrite: bool = False,
) -> list[Scored]:
    """Writes the score of each dataset that does not have it: learned once, and by the same bytes on any engine.

    Raises as the method does, and as `already` does.
    """
    done = already(datasets, name, method.how, overwrite)
    left = [part for part in datasets if not done[part.prefix]]
    if left:
        with tempfile.TemporaryDirectory(prefix=".scoring-", dir=datasets[0].prefix.parent) as folder:
            scorer = method.learn(Path(folder), engine)
        engine.each(partial(_score, name, method.how, scorer, overwrite), left)
    return [Scored(part.prefix, whole_record(part.prefix, name), done[part.prefix]) for part in datasets]


def _score(
    name: str, how: dict[str, Any], scorer: Scorer, overwrite: bool, part: SelectedDataset, here: OneMachine
) -> None:
    chunks = _scored(part, scorer, here)
    write_score(part.prefix, name, part.manifest, chunks, how, overwrite=overwrite, wait=here.waits)


def already(datasets: Sequence[SelectedDataset], name: str, how: dict[str, Any], overwrite: bool) -> dict[Path, bool]:
    """Which datasets have this very score. Raises BadInput where one has another of this name, unless that may be
    replaced (`overwrite`)."""
    check_name(name)
    done = {part.prefix: is_scored(part.prefix, name, part.manifest, how) for part in datasets}
    for prefix in (prefix for prefix, whole in done.items() if not (whole or overwrite)):
        refuse_other_score(prefix, name)
    return done


def _scored(part: SelectedDataset, scorer: Scorer, here: OneMachine) -> Iterator[npt.NDArray[np.float32]]:
    hidden = not here.progress
    with tqdm(total=part.tokens, unit="token", unit_scale=True, disable=hidden, desc=part.prefix.name) as bar:

        def work(chunk: DocumentChunk) -> tuple[npt.NDArray[np.float32], int]:
            return scorer(chunk), len(chunk.tokens)

        for scores, tokens in in_order(work, dataset_chunks(part), here.threads):
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


@dataclass(frozen=True)
class Reference:
    """One reference as the user named it."""

    path: str
    """Prefix, selection, or file, folder or glob of files."""
    sha256: str
    """Hash of its content."""
    parts: tuple[SelectedDataset, ...]
    """Its tokens; none where it is text still to be tokenized."""

    def described(self) -> dict[str, Any]:
        """What to keep of it: the content decides, the name is for people."""
        return {"name": Path(self.path).name, "sha256": self.sha256}


def open_references(option: str, paths: Sequence[str], manifest: Manifest) -> list[Reference]:
    """The references that an option names, to be read as the dataset of `manifest` is tokenized.

    Raises BadInput where there are none, one is missing, or one is tokenized otherwise.
    """
    if not paths:
        raise BadInput(Fault(option, "is needed.", "Name datasets, selections or files of text."))
    return [_open(option, path, manifest) for path in paths]


def tokenized(
    references: Sequence[Reference], manifest: Manifest, text_key: str, folder: Path, workers: int | None
) -> list[SelectedDataset]:
    """The documents of references, those of files tokenized into `folder` as the dataset of `manifest` was.

    `workers` are as `prepare` takes them. Raises BadInput as `prepare` does.
    """
    parts: list[SelectedDataset] = []
    for number, reference in enumerate(references):
        parts += reference.parts
        if not reference.parts:
            assert manifest.tokenizer_folder is not None, "open_references asked for it"
            settings = PrepareSettings(
                text_key=text_key,
                eod=(manifest.settings or {}).get("eod"),
                append_eod=manifest.eod is not None,
                bos="never",
                order="as_read",
            )
            prefix = folder / f"reference-{hashlib.sha256(reference.path.encode()).hexdigest()[:8]}-{number}"
            prepare([reference.path], manifest.tokenizer_folder, prefix, settings, workers=workers)
            parts.append(whole_dataset(prefix))
    return parts


def _open(option: str, path: str, manifest: Manifest) -> Reference:
    prefixes = [path] if idx_path(path).is_file() or Path(path).exists() else named_by(path)
    if path.endswith(SUFFIX):
        selection = load_selection(path)
        reference = Reference(path, selection.sha256, selection.datasets)
    elif idx_path(prefixes[0]).is_file():
        wholes = tuple(whole_dataset(prefix) for prefix in prefixes)
        hashes = [whole.manifest.data_sha256 for whole in wholes]
        of_all = hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()
        reference = Reference(path, of_all, wholes)
    else:
        files = [source.path for source in input_files([path])]
        if tokenizer_of(manifest) is None:
            rule = "is text, and the tokenizer of the dataset is unknown or no longer where it was."
            raise BadInput(Fault(f"{option} {path}", rule, "Give a dataset made with the same tokenizer."))
        contents = "\n".join(file_sha256(file) if isinstance(file, Path) else repr(file) for file in files)
        return Reference(path, hashlib.sha256(contents.encode()).hexdigest(), ())
    for part in reference.parts:
        if None not in (manifest.tokenizer, part.manifest.tokenizer) and manifest.tokenizer != part.manifest.tokenizer:
            rule = f"is made with another tokenizer ({part.manifest.tokenizer_folder})."
            raise BadInput(Fault(f"{option} {path}", rule, "Give its text, or a dataset made with the same tokenizer."))
    return reference


_BINS = 12
_WIDTH = 40
"""Characters of the longest bar."""
_SPREAD = 20
"""Positive values whose largest is so many times their median are binned by their logarithms."""


def histogram_lines(values: npt.NDArray[np.generic]) -> list[str]:
    """A line for each bin: where it begins and ends, how many values are in it, and a bar.

    Values that are not finite have no bin; they are counted in a last line.
    """
    finite = np.asarray(values[np.isfinite(values)], np.float64)
    if len(finite) == 0:
        return ["no values"]
    edges = _edges(finite)
    counts = np.histogram(finite, edges)[0]
    spans = [f"{_short(low)} to {_short(high)}" for low, high in pairwise(edges)]
    widths = max(map(len, spans)), len(f"{counts.max():,}")
    lines = [
        f"{span:<{widths[0]}} {count:>{widths[1]},} {'#' * int(np.ceil(_WIDTH * count / counts.max()))}".rstrip()
        for span, count in zip(spans, counts.tolist(), strict=True)
    ]
    odd = len(values) - len(finite)
    return [*lines, f"not finite: {odd:,}"] if odd else lines


def _edges(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    lowest, highest = float(values.min()), float(values.max())
    if lowest == highest:
        return np.array([lowest, highest])
    if lowest > 0 and highest > _SPREAD * float(np.median(values)):
        edges = np.geomspace(lowest, highest, _BINS + 1)
    else:
        edges = np.linspace(lowest, highest, _BINS + 1)
    # Rounded on the way, they would leave out the values at the ends.
    edges[0], edges[-1] = lowest, highest
    return edges


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
