"""Documents to a dataset.

1. Every line of the inputs is a document or is rejected with its reason (documents.py).
2. Batches are tokenized; BOS and EOD are put around each document.
3. The hash of its content says whether a document is held out (holdout.py).
4. Training and held-out documents wait on disk, in shuffled or input order (spool.py).
5. Exact copies of earlier documents are found and listed (dedup.py).
6. PREFIX.validation, then PREFIX are written without them: data, index, documents, manifest last.

Memory holds a few batches or one bucket. The bytes are the same for any number of threads, and what
stood under PREFIX stays whole until step 6.
"""

import glob
import shutil
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import orjson
from tqdm import tqdm

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault
from megatron_cpt.corpus.batches import Batch, Framing, encoded_batches
from megatron_cpt.corpus.columns import DOCUMENT_RECORD, DOCUMENTS, ColumnWriter, column_path, read_column
from megatron_cpt.corpus.dedup import Copies
from megatron_cpt.corpus.documents import Document, Rejected, input_files, read_documents
from megatron_cpt.corpus.fast import Encoder, encoder_for
from megatron_cpt.corpus.indexed import IndexedWriter, bin_path, dtype_for, invalidate, manifest_path
from megatron_cpt.corpus.lines import COMPRESSED
from megatron_cpt.corpus.manifest import (
    Manifest,
    SourceFile,
    load_manifest,
    read_manifest,
    tool_version,
    write_manifest,
)
from megatron_cpt.corpus.spool import Buckets, Queue, Spool, TokenizedDocuments
from megatron_cpt.corpus.tokenize import BosPolicy, Tokenizer
from megatron_cpt.runs.durable import durable_file

BUCKET_BYTES = 64 << 20
"""Input bytes whose tokens one bucket should hold in memory."""
MOST_BUCKET_BITS = 7
"""128 buckets, two files each, twice: below the usual limit of 1,024 open files."""
COMPRESSION = 4
"""Text bytes of a compressed byte, about."""


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """What decides the bytes of a dataset, the inputs and the tokenizer aside."""

    text_key: str = "text"
    """Key of the text in a JSON line."""
    eod: str | None = None
    """Token that closes each document. None: the tokenizer's eos_token."""
    append_eod: bool = True
    """Whether EOD closes each document; without it nothing parts documents but the index."""
    bos: BosPolicy = "auto"
    """Whether BOS opens each document: `auto` does what the tokenizer itself does."""
    order: Literal["shuffled", "as_read"] = "shuffled"
    """Order of the documents in the dataset."""
    seed: int = 1234
    """Seed of the shuffled order."""
    holdout: float = 0.0
    """Share of documents, 0 to 1, that go to PREFIX.validation."""
    keep_duplicates: bool = False
    """Whether exact copies of earlier documents stay."""
    max_rejected: float = 0.01
    """Share of documents, 0 to 1, that may be rejected before the whole call fails."""


@dataclass(frozen=True)
class Prepared:
    """What prepare did."""

    training: Manifest
    """Manifest of PREFIX."""
    validation: Manifest | None
    """Manifest of PREFIX.validation. None: nothing was held out."""
    reused: bool
    """Everything was there already, made from the same inputs with the same settings."""


def validation_prefix(output: Path) -> Path:
    """Where held-out documents go."""
    return output.with_name(f"{output.name}.validation")


def rejected_path(output: Path) -> Path:
    """Where rejected lines are listed."""
    return output.with_name(f"{output.name}.rejected.jsonl")


def duplicates_path(output: Path) -> Path:
    """Where exact copies that were left out are listed, with what they repeat."""
    return output.with_name(f"{output.name}.duplicates.jsonl")


def prepare(
    inputs: Sequence[str],
    tokenizer_folder: str | Path,
    output: str | Path,
    settings: PrepareSettings | None = None,
    *,
    progress: bool = False,
    fast: bool = True,
) -> Prepared:
    """Writes PREFIX.{bin,idx,manifest.json,documents.npy}, PREFIX.validation.*, and lists of what was
    left out: PREFIX.rejected.jsonl, PREFIX.duplicates.jsonl.

    `fast` lets gigatoken tokenize where it is installed and proven equal (fast.py): the bytes are the same.
    Raises BadInput for unusable inputs or tokenizers, too many rejected documents, or a part (training
    or held-out) that got no document.
    """
    job = _Job(
        files=input_files(inputs),
        tokenizer=Tokenizer.load(tokenizer_folder, (settings or PrepareSettings()).eod),
        output=Path(output),
        settings=settings or PrepareSettings(),
    )
    job.output.parent.mkdir(parents=True, exist_ok=True)
    _sweep(job.output)
    return _reusable(job) or _prepare(job, encoder_for(job.tokenizer, job.files, job.settings.text_key, fast), progress)


class _Job:
    """One call: what goes in and what is fixed by it."""

    def __init__(self, files: list[Path], tokenizer: Tokenizer, output: Path, settings: PrepareSettings) -> None:
        self.files = files
        self.tokenizer = tokenizer
        self.output = output
        self.settings = settings
        self.eod = tokenizer.eod if settings.append_eod else None
        self.bos = tokenizer.bos_for(settings.bos)
        self.framing = Framing(tokenizer, self.bos, self.eod, settings.seed, settings.holdout)
        self.dtype = dtype_for(tokenizer.vocabulary_size)
        self.sources = [_source(file) for file in files]
        self.size = sum(source.size for source in self.sources)

    @property
    def parts(self) -> list[Path]:
        """The prefixes to be written, in that order."""
        return [*([validation_prefix(self.output)] if self.settings.holdout else []), self.output]

    @property
    def workspace(self) -> Path:
        """Folder of what is only there while the call lasts."""
        return self.output.with_name(f".{self.output.name}.preparing")


def _source(file: Path) -> SourceFile:
    state = file.stat()
    return SourceFile(str(file.resolve()), state.st_size, state.st_mtime_ns)


def _sweep(output: Path) -> None:
    """Removes what a killed call left."""
    shutil.rmtree(output.with_name(f".{output.name}.preparing"), ignore_errors=True)
    for ending in ("bin", "idx", "manifest.json", "documents.npy", "rejected.jsonl", "duplicates.jsonl"):
        for part in ("", ".validation"):
            for file in output.parent.glob(f".{glob.escape(output.name)}{part}.{ending}.partial-*"):
                file.unlink()


def _reusable(job: _Job) -> Prepared | None:
    """The result of an earlier call that is whole and was made from the same things."""
    manifests: list[Manifest] = []
    for prefix in job.parts:
        if not manifest_path(prefix).is_file():
            return None
        try:
            manifest = load_manifest(prefix)
            read_column(prefix, DOCUMENTS, manifest.documents)
        except (BadInput, IntegrityFault):
            return None
        made_by = (manifest.settings, manifest.sources, manifest.tokenizer)
        if made_by != (asdict(job.settings), job.sources, job.tokenizer.identity):
            return None
        manifests.append(manifest)
    return Prepared(manifests[-1], manifests[0] if job.settings.holdout else None, reused=True)


def _prepare(job: _Job, encode: Encoder, progress: bool) -> Prepared:
    try:
        with ExitStack() as files:
            spools = {prefix: _spool(job, prefix) for prefix in job.parts}
            for spool in spools.values():
                files.callback(spool.close)
            copies = Copies(job.workspace / "copies")
            files.callback(copies.close)
            rejected = _fill(job, encode, spools, copies, progress)
            _refuse_empty(job, spools)
            duplicates = 0 if job.settings.keep_duplicates else _list_duplicates(job, copies)
            if duplicates == 0:
                duplicates_path(job.output).unlink(missing_ok=True)
            # No moment has the new training part beside an old held-out one, or the reverse.
            invalidate(job.output)
            _remove_stale_validation(job)
            left_out = _LeftOut(rejected, duplicates, copies)
            manifests = [_write(job, prefix, spools[prefix].drain(), left_out) for prefix in job.parts]
    finally:
        shutil.rmtree(job.workspace, ignore_errors=True)
    return Prepared(manifests[-1], manifests[0] if job.settings.holdout else None, reused=False)


def _spool(job: _Job, prefix: Path) -> Spool:
    folder = job.workspace / prefix.name
    if job.settings.order == "as_read":
        return Queue(folder, job.dtype)
    text = sum(source.size * (COMPRESSION if source.path.endswith(COMPRESSED) else 1) for source in job.sources)
    bits = min(MOST_BUCKET_BITS, (text // BUCKET_BYTES).bit_length())
    return Buckets(folder, job.dtype, bits)


def _fill(job: _Job, encode: Encoder, spools: dict[Path, Spool], copies: Copies, progress: bool) -> int:
    """Reads, tokenizes and spools everything, lists what is rejected, and returns how many were."""
    read = rejected = 0
    with (
        durable_file(rejected_path(job.output)) as listing,
        tqdm(total=job.size, unit="B", unit_scale=True, disable=not progress, desc=job.output.name) as bar,
    ):
        for batch, encoded in encoded_batches(read_documents(job.files, job.settings.text_key), encode):
            framed = job.framing.frame(batch, encoded, copies.documents)
            copies.add(framed.entries)
            spools[job.output].add(framed.training)
            if job.settings.holdout:
                spools[validation_prefix(job.output)].add(framed.held_out)
            for line in framed.rejected:
                listing.write(orjson.dumps(_listed(job, line), option=orjson.OPT_APPEND_NEWLINE))
            read += len(batch)
            rejected += len(framed.rejected)
            _advance(bar, job, batch, read)
    if rejected == 0:
        rejected_path(job.output).unlink()
    if rejected > job.settings.max_rejected * read:
        raise BadInput(
            Fault(
                f"{rejected:,} of {read:,} documents",
                f"were rejected, more than {job.settings.max_rejected:.2%}; "
                f"{rejected_path(job.output)} lists them with reasons.",
                "Mend them, or allow more with --max-rejected.",
            )
        )
    return rejected


def _listed(job: _Job, line: Rejected) -> dict[str, str | int]:
    return {"file": job.sources[line.file].path, "line": line.line, "reason": line.reason}


def _list_duplicates(job: _Job, copies: Copies) -> int:
    """Lists every exact copy with what it repeats, and returns how many there are."""
    count = 0
    with durable_file(duplicates_path(job.output)) as listing:
        for copy in copies.find():
            place = {"file": job.sources[copy.file].path, "line": copy.line}
            first = {"file": job.sources[copy.first_file].path, "line": copy.first_line}
            entry = {**place, "reason": "exact copy", "of": first, "content_hash": f"{copy.content_hash:016x}"}
            listing.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))
            count += 1
    return count


def _advance(bar: tqdm, job: _Job, batch: Batch, read: int) -> None:
    """Moves the bar to the last document's place in the input."""
    last = next((line for line in reversed(batch) if isinstance(line, Document)), None)
    if last is not None:
        before = sum(source.size for source in job.sources[: last.file])
        bar.update(before + last.position - bar.n)
    elapsed = bar.format_dict["elapsed"]
    bar.set_postfix_str(f"{read:,} documents, {read / elapsed:,.0f}/s" if elapsed else "", refresh=False)


def _refuse_empty(job: _Job, spools: dict[Path, Spool]) -> None:
    for prefix, spool in spools.items():
        if spool.documents == 0:
            held_out = prefix != job.output
            raise BadInput(
                Fault(
                    str(prefix),
                    f"would get no document (held out: {job.settings.holdout:.2%} of the documents).",
                    "Raise --holdout." if held_out else "Give inputs with text, and hold out less than all of it.",
                )
            )


def _remove_stale_validation(job: _Job) -> None:
    """Documents held out by an earlier call may be in training now: their dataset must not stay."""
    prefix = validation_prefix(job.output)
    if not manifest_path(prefix).is_file() or read_manifest(prefix).settings is None:
        return
    invalidate(prefix)
    bin_path(prefix).unlink(missing_ok=True)
    column_path(prefix, DOCUMENTS).unlink(missing_ok=True)


@dataclass(frozen=True)
class _LeftOut:
    rejected: int
    duplicates: int
    copies: Copies


def _write(job: _Job, prefix: Path, chunks: Iterable[TokenizedDocuments], left_out: _LeftOut) -> Manifest:
    text_bytes = 0
    # Leaving the block: data and index first, then the column; the manifest comes last.
    with (
        ColumnWriter(prefix, DOCUMENTS, DOCUMENT_RECORD) as column,
        IndexedWriter(prefix, job.dtype, job.tokenizer.vocabulary_size) as writer,
    ):
        for whole in chunks:
            copied = left_out.duplicates > 0
            chunk = whole.chosen(~left_out.copies.among(whole.records["number"])) if copied else whole
            writer.add_many(chunk.tokens, chunk.records["tokens"])
            column.add(chunk.records[list(DOCUMENT_RECORD.names or ())])
            text_bytes += int(chunk.records["bytes"].sum())
    manifest = Manifest(
        documents=writer.documents,
        tokens=writer.token_count,
        bytes=text_bytes,
        dtype=writer.dtype.name,
        vocabulary_size=job.tokenizer.vocabulary_size,
        tokenizer=job.tokenizer.identity,
        tokenizer_folder=str(job.tokenizer.folder.resolve()),
        eod=job.eod,
        bos=job.bos,
        order=job.settings.order,
        seed=job.settings.seed,
        settings=asdict(job.settings),
        sources=job.sources,
        rejected=left_out.rejected,
        duplicates=left_out.duplicates,
        data_sha256=writer.data_sha256,
        index_sha256=writer.index_sha256,
        tool_version=tool_version(),
    )
    write_manifest(prefix, manifest)
    return manifest
