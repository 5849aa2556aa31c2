"""Scores of documents: PREFIX.NAME.npy beside each dataset (corpus/scores.py).

A score comes from a method (ngram.py, learned.py, a model) or from a number that stands in the JSON already, matched by
the hash of each document's text. References are texts that a method learns from.
"""

import hashlib
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.corpus.indexed import idx_path
from megatron_cpt.corpus.manifest import Manifest, documents_column
from megatron_cpt.corpus.parts import named_by
from megatron_cpt.corpus.scores import ScoreRecord, check_name, is_scored, refuse_other_score, whole_record, write_score
from megatron_cpt.corpus.selection import SUFFIX, SelectedDataset, load_selection, whole_dataset
from megatron_cpt.corpus.stream import DocumentChunk, dataset_chunks, expand_paths, tokenizer_of
from megatron_cpt.preparation.documents import Keys, read_inputs
from megatron_cpt.preparation.input_kinds import Input
from megatron_cpt.preparation.inputs import input_files
from megatron_cpt.preparation.job import PrepareSettings
from megatron_cpt.preparation.prepare import prepare
from megatron_cpt.preparation.process_piece import batches
from megatron_cpt.preparation.remote_file import RemoteFile
from megatron_cpt.preparation.sorted_runs import content_hash
from megatron_cpt.runs.folder import file_sha256

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
    missing: int = 0
    """Documents that got the score of those without a number, where it was computed now."""


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


def score_by_field(
    datasets: Sequence[SelectedDataset],
    name: str,
    field: str,
    text_key: str | None,
    paths: Sequence[str],
    overwrite: bool = False,
    missing: float | None = None,
) -> list[Scored]:
    """Writes the score of each dataset from the field of its documents.

    `paths` are the files it was prepared from, by default those that its manifest names; `text_key` is by
    default the key it was prepared with; `missing` is the score of a document without a number. Raises BadInput where
    files are unknown, gone or changed, or a document has no number and `missing` is None, or no document of all the
    datasets has one, or a dataset has another score of this name and it may not be replaced (`overwrite`).
    """
    check_name(name)
    results: dict[Path, Scored] = {}
    # Written last, when another dataset is known to have numbers: where none has, the field is the wrong one.
    without_any: list[tuple[SelectedDataset, dict[str, Any]]] = []
    for part in datasets:
        inputs = input_files(paths) if paths else _sources(part)
        state = [[str(source.path.resolve()), *_state(source.path)] for source in inputs]
        settings = part.manifest.settings or {}
        chat = settings.get("train_on") is not None
        keys = Keys(text_key or settings.get("text_key", "text"), field, chat=chat)
        how: dict[str, Any] = {"by": "field", "field": field, "text_key": keys.text, "sources": state}
        if missing is not None:
            how["missing"] = missing
        reused, without = already([part], name, how, overwrite)[part.prefix], 0
        if not reused:
            scores, without = _scores(part, inputs, keys)
            if without and missing is None:
                raise _no_number(field, without, [part], len(datasets) > 1 or without < part.manifest.documents)
            if without == part.manifest.documents > 0:
                without_any.append((part, how))
                continue
            if missing is not None:
                scores[np.isnan(scores)] = missing
            write_score(part.prefix, name, part.manifest, [scores], how)
        results[part.prefix] = Scored(part.prefix, whole_record(part.prefix, name), reused, without)
    if without_any and not any(one.record.documents for one in results.values()):
        parts = [part for part, _ in without_any]
        raise _no_number(field, sum(part.manifest.documents for part in parts), parts, False)
    for part, how in without_any:
        count = part.manifest.documents
        write_score(part.prefix, name, part.manifest, [np.full(count, missing, np.float32)], how)
        results[part.prefix] = Scored(part.prefix, whole_record(part.prefix, name), False, count)
    return [results[part.prefix] for part in datasets]


def _no_number(field: str, without: int, datasets: Sequence[SelectedDataset], may_be_missing: bool) -> BadInput:
    of = str(datasets[0].prefix) + (f" and {len(datasets) - 1:,} more datasets" if len(datasets) > 1 else "")
    documents = sum(part.manifest.documents for part in datasets)
    rule = f"gives no number for {without:,} of the {documents:,} documents of {of}."
    remedy = "Name another field, or --input with the files as prepared"
    remedy += ", or give those documents a --missing number." if may_be_missing else "."
    return BadInput(Fault(f"--field {field}", rule, remedy))


def _sources(part: SelectedDataset) -> list[Input]:
    """The files that a manifest names, as they were then."""
    sources = part.manifest.sources
    if not sources:
        rule = "does not say which files it was prepared from."
        raise BadInput(Fault(str(part.prefix), rule, "Name them with --input."))
    for source in sources:
        path = Path(source.path)
        if not path.is_file() or _state(path) != (source.size, source.modified_ns):
            rule = f"was prepared from {path}, which is gone or changed."
            raise BadInput(Fault(str(part.prefix), rule, "Name the files, as they are now, with --input."))
    return input_files([source.path for source in sources])


def _state(path: Path | RemoteFile) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def _scores(part: SelectedDataset, inputs: Sequence[Input], keys: Keys) -> tuple[npt.NDArray[np.float32], int]:
    """The number under keys.id of each document, of copies the first that has one, NaN where there is none; and how
    many have none."""
    prefix, manifest = part.prefix, part.manifest
    hashes = documents_column(prefix, manifest)["content_hash"]
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    scores = np.full(manifest.documents, np.nan, np.float32)
    for batch in batches((line for _, line in read_inputs(inputs, keys)), []):
        numbers = np.array([_number(document.id) for document in batch], np.float32)
        found = np.frombuffer(b"".join(content_hash(document.content) for document in batch), "<u8")
        first, end = np.searchsorted(ordered, found), np.searchsorted(ordered, found, side="right")
        for number, begin, behind in zip(numbers, first, end, strict=True):
            same = order[begin:behind]
            scores[same[np.isnan(scores[same])]] = number
    return scores, int(np.isnan(scores).sum())


def _number(text: str) -> float:
    """The number of a field; NaN where it is none that a score can be."""
    try:
        number = float(text)
    except ValueError:
        return np.nan
    return number if abs(number) <= _LARGEST else np.nan


_LARGEST = float(np.finfo(np.float32).max)


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
    references: Sequence[Reference], manifest: Manifest, text_key: str, folder: Path
) -> list[SelectedDataset]:
    """The documents of references, those of files tokenized into `folder` as the dataset of `manifest` was.

    Raises BadInput as `prepare` does.
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
            prepare([reference.path], manifest.tokenizer_folder, prefix, settings)
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
