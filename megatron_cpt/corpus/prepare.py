"""Documents to a dataset.

1. The inputs are cut into pieces (pieces.py).
2. Workers take a piece each: its lines are documents or are rejected with their reason (documents.py), the
   documents are tokenized, framed by BOS and EOD, hashed (batches.py) and filed, sorted, in PREFIX.pieces
   (piecework.py). A run that was killed goes on with the pieces that are not filed.
3. The pieces are joined (join.py): rejected lines and copies listed, documents held out, everything in its
   order written to PREFIX.validation and PREFIX. Shards do step 2 for a part of the pieces each; `merge` is step 3.

Memory holds a piece of each worker, later one range of the order. The bytes are the same for any number of
workers and shards, and what stood under PREFIX stays whole until the end of step 3.
"""

import glob
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault
from megatron_cpt.corpus.batches import Framing
from megatron_cpt.corpus.columns import DOCUMENTS, read_column
from megatron_cpt.corpus.fast import encoder_for
from megatron_cpt.corpus.indexed import manifest_path
from megatron_cpt.corpus.inputs import STANDARD_INPUT, input_files
from megatron_cpt.corpus.job import Job, PrepareSettings, begin, load_job, unchanged, workspace_of
from megatron_cpt.corpus.join import join
from megatron_cpt.corpus.lines import decompressed
from megatron_cpt.corpus.manifest import Manifest, load_manifest
from megatron_cpt.corpus.pieces import Piece, Span, of_shard, spans, unpacked
from megatron_cpt.corpus.piecework import (
    Finished,
    end_stream,
    finished,
    pieces_of_stream,
    read_finished,
    tokenize_piece,
)
from megatron_cpt.corpus.progress import Progress
from megatron_cpt.corpus.sample import sample
from megatron_cpt.corpus.sentences import SentenceSplitter, sentence_splitter
from megatron_cpt.corpus.tokenize import Tokenizer
from megatron_cpt.corpus.workers import Workers


@dataclass(frozen=True)
class Prepared:
    """What prepare did."""

    training: Manifest
    """Manifest of PREFIX."""
    validation: Manifest | None
    """Manifest of PREFIX.validation. None: nothing was held out."""
    reused: bool
    """Everything was there already, made from the same inputs with the same settings."""


@dataclass(frozen=True)
class Shard:
    """A part of the pieces, for a machine of its own."""

    number: int
    """From 1."""
    of: int
    """Shards in all."""


@dataclass(frozen=True)
class ShardDone:
    """What a shard did."""

    pieces: int
    """Pieces of this shard that are filed now."""
    documents: int
    tokens: int
    rejected: int


def prepare(
    inputs: Sequence[str],
    tokenizer: str | Path | Tokenizer,
    output: str | Path,
    settings: PrepareSettings | None = None,
    *,
    workers: int | None = None,
    progress: bool = False,
    fast: bool = True,
) -> Prepared:
    """Writes PREFIX.{bin,idx,manifest.json,documents.npy}, PREFIX.validation.*, and lists of what was
    left out: PREFIX.rejected.jsonl, PREFIX.duplicates.jsonl.

    `tokenizer` is one that is open, or what Tokenizer.load reads. `workers` defaults to the cores. `fast` lets
    gigatoken tokenize where it is installed and proven equal (fast.py): the bytes are the same. Raises BadInput for
    unusable inputs or tokenizers, too many rejected documents, or a part (training or held-out) that got no
    document; WorkerDied where a worker was killed.
    """
    job, opened = _described(inputs, tokenizer, Path(output), settings or PrepareSettings())
    there = _reusable(job)
    if there is not None:
        return there
    begin(job, shared=False)
    found = spans(job.inputs, job.piece_size, job.settings.text_key)
    _tokenize(job, opened, found, workers, progress, fast)
    # What was found filed was checked then.
    return _join(job, check=False)


def prepare_shard(
    inputs: Sequence[str],
    tokenizer: str | Path | Tokenizer,
    output: str | Path,
    settings: PrepareSettings | None,
    shard: Shard,
    *,
    workers: int | None = None,
    progress: bool = False,
    fast: bool = True,
) -> ShardDone:
    """Tokenizes the pieces of one shard into PREFIX.pieces, for `merge`. Raises as `prepare` does, and BadInput
    where PREFIX.pieces is about other inputs or settings, or standard input is to be shared."""
    if str(STANDARD_INPUT) in inputs:
        raise BadInput(Fault("-", "cannot be shared among shards.", "Give files, or leave --shard out."))
    job, opened = _described(inputs, tokenizer, Path(output), settings or PrepareSettings())
    begin(job, shared=True)
    found = of_shard(spans(job.inputs, job.piece_size, job.settings.text_key), shard.number, shard.of)
    _tokenize(job, opened, found, workers, progress, fast)
    pieces = _filed(job, found, check=False)
    return ShardDone(
        len(pieces),
        sum(piece.documents for piece in pieces),
        sum(piece.tokens for piece in pieces),
        sum(len(piece.rejected) for piece in pieces),
    )


def merge(output: str | Path) -> Prepared:
    """Joins the pieces of all shards. Raises BadInput where there are none or some are missing."""
    job = load_job(Path(output))
    if job is None:
        remedy = "Prepare its shards first: megatron-cpt prepare ... --output PREFIX --shard I/N."
        raise BadInput(Fault(str(workspace_of(Path(output))), "holds no shards.", remedy))
    return _join(job, check=True)


def _described(
    inputs: Sequence[str], tokenizer: str | Path | Tokenizer, output: Path, settings: PrepareSettings
) -> tuple[Job, Tokenizer]:
    files = input_files(inputs, settings.document_per_line)
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = Tokenizer.load(tokenizer, settings.eod, settings.parse_special)
    output.parent.mkdir(parents=True, exist_ok=True)
    _sweep(output)
    return Job.describe(output, settings, files, tokenizer), tokenizer


def _sweep(output: Path) -> None:
    """Removes what a killed call left beside the dataset."""
    for ending in ("bin", "idx", "manifest.json", "documents.npy", "ids.jsonl", "rejected.jsonl", "duplicates.jsonl"):
        for part in ("", ".validation"):
            for file in output.parent.glob(f".{glob.escape(output.name)}{part}.{ending}.partial-*"):
                file.unlink()


def _reusable(job: Job) -> Prepared | None:
    """The result of an earlier call that is whole and was made from the same things."""
    if job.reads_standard_input:
        return None
    manifests: list[Manifest] = []
    for prefix in job.parts:
        if not manifest_path(prefix).is_file():
            return None
        try:
            manifest = load_manifest(prefix)
            read_column(prefix, DOCUMENTS, manifest.documents)
        except (BadInput, IntegrityFault):
            return None
        made_by = (manifest.settings, manifest.sources, manifest.tokenizer, manifest.bos, manifest.eod)
        if made_by != (asdict(job.settings), job.sources, job.tokenizer, job.bos, job.eod):
            return None
        manifests.append(manifest)
    return Prepared(manifests[-1], manifests[0] if job.settings.holds_out else None, reused=True)


def _tokenize(
    job: Job, tokenizer: Tokenizer, found: Sequence[Span], workers: int | None, progress: bool, fast: bool
) -> None:
    """Files every piece of the spans that is not filed yet."""
    count = workers or os.cpu_count() or 1
    settings = job.settings
    with (
        _one_thread(),
        Progress(job.output.name, count, sum(span.size for span in found), progress) as bar,
    ):
        pieces = _unfiled(job, found, bar)
        first = next(pieces, None)
        if first is None:
            return
        text = partial(sample, job, found, first)
        framing = Framing(
            tokenizer=tokenizer,
            encode=encoder_for(tokenizer, text, fast),
            bos=job.bos,
            eod=job.eod,
            seed=settings.seed if settings.order == "shuffled" else None,
            control_tokens=settings.parse_special,
            split=_splitter(job),
        )
        with Workers(count, partial(_work, job, framing, bar)) as pool:
            bar.show()
            for _ in pool.map(chain([first], pieces)):
                pass
    unchanged(job)


def _splitter(job: Job) -> SentenceSplitter | None:
    """From all inputs, whatever part of them is this shard's: all shards split alike."""
    settings = job.settings
    if not settings.split_sentences:
        return None
    if job.reads_standard_input:
        rule = "learns from the input before it is read, which standard input does not allow."
        raise BadInput(Fault("--split-sentences", rule, "Give files."))
    everything = spans(job.inputs, job.piece_size, settings.text_key)
    text = partial(sample, job, everything)
    return sentence_splitter(settings.language, settings.keep_newlines, text)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keeps the tokenizers library from threads of its own, which would not survive a fork."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _work(job: Job, framing: Framing, bar: Progress, worker: int, piece: Piece) -> Finished:
    return tokenize_piece(job, framing, piece, bar.counters(worker))


def _unfiled(job: Job, found: Iterable[Span], bar: Progress) -> Iterator[Piece]:
    """The pieces that are not filed yet."""
    for span in found:
        if not span.streamed:
            pieces: Iterable[Piece] = [span.piece]
        elif _known(job, span.piece.file):
            bar.skip(span.size)
            continue
        else:
            pieces = _unpacked(job, span.piece.file)
        for piece in pieces:
            done = finished(job, piece)
            if done is None:
                yield piece
            else:
                bar.skip(done.bytes)
                if span.streamed:
                    piece.path.unlink()


def _known(job: Job, file: int) -> bool:
    """Whether a stream need not be read again; of standard input that shows only when it is."""
    return job.inputs[file].path != STANDARD_INPUT and _streamed(job, file, check=True) is not None


def _unpacked(job: Job, file: int) -> Iterator[Piece]:
    source = job.inputs[file]
    standard = source.path == STANDARD_INPUT
    number = 0
    with (
        sys.stdin.buffer if standard else source.path.open("rb") as raw,
        decompressed(raw, job.sources[file].path, source.compression) as stream,
    ):
        for piece in unpacked(stream, file, source.kind == "text", standard, job.workspace, job.piece_size):
            number += 1
            yield piece
    end_stream(job, file, number)


def _streamed(job: Job, file: int, check: bool) -> list[Finished] | None:
    """The pieces of a stream that was read to its end, if all are filed."""
    count = pieces_of_stream(job, file)
    if count is None:
        return None
    pieces = [read_finished(job, file, number, check) for number in range(count)]
    there = [piece for piece in pieces if piece is not None]
    return there if len(there) == count else None


def _filed(job: Job, found: Sequence[Span], check: bool) -> list[Finished]:
    """Every piece of the spans, in the order read. Raises BadInput where some are missing or, on a `check`, damaged."""
    pieces: list[Finished] = []
    missing: list[str] = []
    for span in found:
        file = span.piece.file
        if span.streamed:
            there = _streamed(job, file, check)
        else:
            piece = read_finished(job, file, span.piece.number, check)
            there = None if piece is None else [piece]
        if there is None:
            missing.append(job.sources[file].path)
        pieces += there or []
    if missing:
        raise BadInput(
            Fault(
                f"{len(missing):,} of {len(found):,} parts of the input",
                f"are not tokenized yet or damaged, the first of {missing[0]}, the last of {missing[-1]}.",
                "Run their shards again, then merge.",
            )
        )
    return pieces


def _join(job: Job, check: bool) -> Prepared:
    found = spans(job.inputs, job.piece_size, job.settings.text_key)
    joined = join(job, _filed(job, found, check))
    shutil.rmtree(job.workspace)
    return Prepared(joined.training, joined.validation, reused=False)
