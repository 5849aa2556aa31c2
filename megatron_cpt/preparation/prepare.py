"""Documents to a dataset.

1. The inputs are cut into pieces (inputs.py).
2. A worker takes a piece: it reads the documents and rejects broken lines with a reason (documents.py), tokenizes them,
   adds BOS and EOD, hashes them, and leaves the finished piece, sorted, in PREFIX.pieces (process_piece.py). A killed
   run resumes with the pieces that are not finished.
3. What becomes of each document is decided once: copies and rejected lines are listed, documents are held out
   (decisions.py). Then the pieces are joined (join.py): everything is written in its order to PREFIX and
   PREFIX.validation, or to those of each part. Shards do step 2 for some of the pieces; `merge` is step 3.

Memory holds one piece per worker, later one range of the order. The bytes are the same for any number of workers and
shards. What stood under PREFIX stays whole until the end of step 3.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.corpus.manifest import Manifest, documents_column, load_manifest
from megatron_cpt.preparation.chat_template import ChatTemplate, ConversationEncoder
from megatron_cpt.preparation.contamination import (
    EvaluationSet,
    evaluation_ngrams,
    identity_of,
    item_names,
)
from megatron_cpt.preparation.decisions import Decisions, decided
from megatron_cpt.preparation.documents import Document, Keys, read_piece
from megatron_cpt.preparation.encode_documents import DocumentEncoder, solid_bytes
from megatron_cpt.preparation.existing import (
    are_joined,
    files_of,
    finished,
    prefixes_of,
    refuse_others_files,
    refuse_to_replace,
    sweep_files,
    whole_part,
    whole_result,
)
from megatron_cpt.preparation.hashed_words import hashed_words
from megatron_cpt.preparation.indexed_input import TokenReader, faults_of_pairs
from megatron_cpt.preparation.inputs import (
    STANDARD_INPUT,
    TABLES,
    WHOLE,
    Input,
    Kind,
    Piece,
    Span,
    find_inputs,
    of_shard,
    plain_stream,
    spans,
    unpacked,
)
from megatron_cpt.preparation.job import (
    Job,
    PrepareSettings,
    begin,
    clear,
    forget,
    load_job,
    note,
    owned,
    unchanged,
    workspace_of,
)
from megatron_cpt.preparation.join import Joined, join
from megatron_cpt.preparation.pool import PATIENCE_SECONDS, Progress, Workers
from megatron_cpt.preparation.process_piece import (
    Finished,
    completed_pieces,
    pending_pieces,
    tokenize_piece,
)
from megatron_cpt.preparation.text_filters import TextFilters, filter_libraries
from megatron_cpt.preparation.text_signatures import TextChecks, refuse_without_rensa
from megatron_cpt.runs.folder import only_writer
from megatron_cpt.tokenizer.gigatoken import Encoder, encoder_for
from megatron_cpt.tokenizer.tokenizer import SentenceSplitter, Tokenizer, sentence_splitter

_WORKERS_BYTES, _SMALLEST_SHARE = 512 << 20, 32 << 20
"""Memory of all workers together between two pieces, as long as none has less than the smallest share."""


@dataclass(frozen=True)
class Prepared:
    """What prepare did."""

    parts: tuple[Joined, ...]
    """The datasets: one, or one for each part that this call was for."""
    reused: bool
    """Everything was there already, made from the same inputs with the same settings."""

    @property
    def training(self) -> Manifest:
        """Manifest of PREFIX, or of its first part."""
        return self.parts[0].training

    @property
    def validation(self) -> Manifest | None:
        """Manifest of PREFIX.validation, or of that of the first part. None: nothing was held out."""
        return self.parts[0].validation


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
    """Pieces of this shard that are completed now."""
    documents: int
    tokens: int
    rejected: int


def prepare(
    inputs: Sequence[str],
    tokenizer: str | Path | Tokenizer,
    output: str | Path,
    settings: PrepareSettings | None = None,
    *,
    evaluation: Sequence[EvaluationSet] = (),
    workers: int | None = None,
    progress: bool = False,
    fast: bool = True,
    overwrite: bool = False,
    patience: float = PATIENCE_SECONDS,
) -> Prepared:
    """Writes PREFIX.{bin,idx,manifest.json,documents.npy}, PREFIX.validation.*, and lists of what was
    left out: PREFIX.rejected.jsonl, .duplicates.jsonl, .near_duplicates.jsonl, .contaminated.jsonl.

    Args:
        inputs: paths of files and folders, or globs.
        tokenizer: one that is open, or what Tokenizer.load reads: a Hugging Face folder or a tokenizer's file.
        output: PREFIX.
        settings: what decides the bytes of the dataset. None: the defaults.
        evaluation: what documents are compared with, which decides `settings.decontaminate`; the counts are in
            PREFIX.contamination.json.
        workers: processes. None: one a core.
        progress: whether a progress bar is shown.
        fast: whether gigatoken tokenizes where it is installed and gives the same bytes (tokenizer/gigatoken.py).
        overwrite: whether a finished dataset that was made otherwise is replaced.
        patience: seconds after which a worker that has a task and does nothing is given up.
    Raises:
        BadInput: unusable inputs or tokenizers, a finished dataset that was made otherwise, too many rejected
            documents, or a part (training or held-out) that got no document.
        WorkerDied: a worker was killed, or stands still.
    """
    job, opened = described_job(inputs, tokenizer, Path(output), settings or PrepareSettings(), evaluation)
    there = whole_result(job)
    if there is not None:
        forget(job)
        return Prepared(tuple(there), reused=True)
    with owned(job.output):
        there = begun(job, overwrite)  # another call may have finished meanwhile
        if there is not None:
            return Prepared(tuple(there), reused=True)
        found = spans(job.inputs, job.piece_size, job.settings.text_key)
        _tokenize(job, opened, evaluation, found, workers, progress, fast, patience)
        # What was found completed was checked then.
        return _join(job, workers, patience, check=False)


def begun(job: Job, overwrite: bool) -> list[Joined] | None:
    """Makes the workspace, which the caller owns, this job's; or what is there already, made from the same things.

    Raises BadInput where files of others, or without `overwrite` a finished dataset, would be replaced.
    """
    sweep_files(job)
    there = whole_result(job)
    if there is not None:
        return there
    refuse_others_files(job)
    if not overwrite:
        refuse_to_replace(job, job.datasets)
    begin(job, shared=False)
    return None


def prepare_shard(
    inputs: Sequence[str],
    tokenizer: str | Path | Tokenizer,
    output: str | Path,
    settings: PrepareSettings | None,
    shard: Shard,
    *,
    evaluation: Sequence[EvaluationSet] = (),
    workers: int | None = None,
    progress: bool = False,
    fast: bool = True,
    patience: float = PATIENCE_SECONDS,
) -> ShardDone:
    """Tokenizes the pieces of one shard into PREFIX.pieces, for `merge`; by no `workers`, in this process alone.

    Raises as `prepare` does, and BadInput where PREFIX.pieces is about other inputs or settings, or standard input is
    to be shared.
    """
    if str(STANDARD_INPUT) in inputs:
        raise BadInput(Fault("-", "cannot be shared among shards.", "Give files, or leave --shard out."))
    job, opened = described_job(inputs, tokenizer, Path(output), settings or PrepareSettings(), evaluation)
    with owned(job.output, shared=True):
        begin(job, shared=True)
        found = of_shard(spans(job.inputs, job.piece_size, job.settings.text_key), shard.number, shard.of)
        _tokenize(job, opened, evaluation, found, workers, progress, fast, patience)
        pieces = completed_pieces(job, found, check=False)
    return ShardDone(
        len(pieces),
        sum(piece.documents for piece in pieces),
        sum(piece.tokens for piece in pieces),
        sum(len(piece.rejected) for piece in pieces),
    )


def merge(
    output: str | Path,
    overwrite: bool = False,
    *,
    parts: int | None = None,
    part: int | None = None,
    workers: int | None = None,
) -> Prepared:
    """Joins the pieces of all shards.

    Args:
        output: PREFIX.
        overwrite: whether a finished dataset that was made otherwise is replaced.
        parts: datasets that the order is divided into. None: as the shards were told.
        part: from 1, the only one that is joined by this call; others may be at the same time. None: all.
        workers: processes, where there are several parts. None: one a core.
    Raises:
        BadInput: there are neither pieces nor the whole dataset, pieces are missing, or as `prepare` does.
        WorkerDied: a process was killed.
    """
    output = Path(output)
    if not workspace_of(output).is_dir():
        return _merged_before(output, parts, part)
    with owned(output, shared=part is not None):
        job = _merged_job(output, parts)
        if part is None:
            sweep_files(job)
            refuse_others_files(job)
            if not overwrite:
                refuse_to_replace(job, job.datasets)
            return _join(job, workers, PATIENCE_SECONDS, check=True)
        if parts is None and job.settings.parts == 1:
            raise _part_needs_parts(part)
        _refuse_other_part(part, job.settings.parts)
        joined = join_alone(job, part, overwrite)
    if are_joined(job, joined):
        with suppress(BadInput), owned(output):  # whoever joins another part yet does it
            clear(output)
    return Prepared((joined,), reused=False)


def _merged_job(output: Path, parts: int | None) -> Job:
    job = load_job(output)
    if job is None:
        raise _no_shards(output)
    return job if parts is None else replace(job, settings=replace(job.settings, parts=parts))


def _merged_before(output: Path, parts: int | None, part: int | None) -> Prepared:
    """What earlier calls joined, where the pieces are gone as all of it is there. BadInput: it is not."""
    there = finished(output, parts)
    if there is None:
        raise _no_shards(output)
    if part is None:
        return Prepared(tuple(there), reused=True)
    if parts is None and len(there) == 1:
        raise _part_needs_parts(part)
    _refuse_other_part(part, len(there))
    return Prepared((there[part - 1],), reused=True)


def _part_needs_parts(part: int) -> BadInput:
    return BadInput(Fault(f"--part {part}", "needs --parts: the shards were told of no parts.", "Give --parts N too."))


def _refuse_other_part(part: int, parts: int) -> None:
    if not 1 <= part <= parts:
        rule = f"is none of the parts, which are 1 to {parts}."
        raise BadInput(Fault(f"--part {part}", rule, "Give --parts N with each --part."))


def _no_shards(output: Path) -> BadInput:
    remedy = "Prepare its shards first: megatron-cpt prepare ... --output PREFIX --shard I/N."
    return BadInput(Fault(str(workspace_of(output)), "holds no shards.", remedy))


def join_alone(job: Job, part: int, overwrite: bool) -> Joined:
    """Joins one part, from 1, while others may be joined elsewhere; what is there of it, whole, is left.

    It waits for another process that writes the same part, such as one whose machine is being given up. Raises BadInput
    as `merge` does.
    """
    prefix = job.datasets[part - 1]
    with only_writer(prefix, files_of(prefix), wait=True):
        refuse_others_files(job)
        pieces = _pieces(job, check=False)
        decisions = decided(job, pieces, check=True)
        there = whole_part(job, decisions, part)
        if there is not None:
            return there
        if not overwrite:
            refuse_to_replace(job, [prefix])
        return join(job, pieces, decisions, part)


def described_job(
    inputs: Sequence[str],
    tokenizer: str | Path | Tokenizer,
    output: Path,
    settings: PrepareSettings,
    evaluation: Sequence[EvaluationSet],
) -> tuple[Job, Tokenizer]:
    """The job of a call, over files as they are now, and its tokenizer, open. Raises BadInput as `prepare` does."""
    settings = replace(settings, decontaminate=identity_of(evaluation) if evaluation else None)
    refuse(_settings_faults(settings))
    if not output.name:
        raise BadInput(Fault(f"--output {output}", "is a folder.", "Give a prefix in it, such as data/corpus."))
    if settings.filters is not None:
        settings = replace(settings, filter_libraries=filter_libraries())
    written = prefixes_of(output, settings.parts)
    refuse(
        [
            Fault(f"--decontaminate {one.source}", _WRITTEN, "Name others.")
            for one in evaluation
            if Path(one.source).resolve() in written
        ]
    )
    if settings.dedup_against is not None:
        settings = replace(settings, dedup_against=_with_hashes([*settings.dedup_against], written))
    found = find_inputs(inputs, settings.document_per_line, settings.text_key)
    chat = settings.train_on is not None
    if chat:
        refuse(_not_json_lines(found.inputs))
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = Tokenizer.load(tokenizer, settings.eod, settings.parse_special or chat)
    if chat:
        settings = replace(settings, chat_template=ChatTemplate.load(tokenizer).identity)
    job = Job.describe(output, settings, found.inputs, tokenizer, found.not_read)
    if _tokenized(job):
        reader = TokenReader(tokenizer, job.bos, job.eod, settings.looks_at_text)
        refuse(
            [
                *_meaningless_faults(settings),
                *faults_of_pairs(job.inputs, reader, bool(settings.holdout or settings.holdout_tokens)),
            ]
        )
    return job, tokenizer


def _not_json_lines(inputs: Sequence[Input]) -> list[Fault]:
    return [
        Fault(str(source.path), "is no JSON lines, and conversations are.", "Write a JSON object a line.")
        for source in inputs
        if source.kind != "json_lines"
    ]


def _tokenized(job: Job) -> list[Input]:
    """The inputs that are datasets."""
    return [source for source in job.inputs if source.kind == "indexed"]


def _meaningless_faults(settings: PrepareSettings) -> list[Fault]:
    """Settings that a dataset among the inputs has no meaning for."""
    given = {
        "--where": settings.where is not None,
        "--id-key": settings.id_key is not None,
        "--split-sentences": settings.split_sentences,
        "--max-length": settings.max_length is not None,
        "--filter": settings.filters is not None,
    }
    rule = "needs text and fields, and one of the inputs is a dataset of tokens."
    return [Fault(name, rule, "Leave it out, or give the files of text.") for name, there in given.items() if there]


def _chat_faults(settings: PrepareSettings) -> list[Fault]:
    """What is asked of conversations that are none, and of texts that are conversations."""
    default = PrepareSettings()
    if settings.train_on is None:
        remedy = "Give --chat, or leave --truncate out."
        return [Fault("--truncate without --chat", "is of conversations.", remedy)] if settings.truncate else []
    faults = [
        Fault(f"--chat and {flag}", rule, f"Leave {flag} out.")
        for flag, given, rule in (
            ("--text-key", settings.text_key != default.text_key, "contradict: a conversation's keys are known."),
            ("--bos", settings.bos != default.bos, "contradict: the chat template writes BOS, or none."),
            ("--split-sentences", settings.split_sentences, "contradict: the chat template writes one sequence."),
            ("--filter", settings.filters is not None, "contradict: the filters are for texts of the web."),
            ("--document-per-line", settings.document_per_line, "contradict: conversations are JSON lines."),
        )
        if given
    ]
    if settings.truncate and settings.max_length is None:
        faults.append(Fault("--truncate", "needs a length.", "Give --max-length TOKENS."))
    return faults


_WRITTEN = "is the dataset that is written."


def _with_hashes(prefixes: Sequence[str], written: set[Path]) -> dict[str, str]:
    """Datasets whose documents are left out, by their absolute prefixes, with the hash of their documents' hashes."""
    found: dict[str, str] = {}
    faults = []
    for text in prefixes:
        prefix = Path(text).absolute()
        manifest = load_manifest(prefix)
        name = f"--dedup-against {text}"
        if prefix.resolve() in written:
            faults.append(Fault(name, _WRITTEN, "Name others."))
        elif manifest.documents_sha256 is None:
            rule = "has no hashes of its documents' texts (documents.npy)."
            remedy = "Make them once: megatron-cpt prepare PREFIX --tokenizer PATH --output ANOTHER."
            faults.append(Fault(name, rule, remedy))
        else:
            documents_column(prefix, manifest)
            found[str(prefix)] = manifest.documents_sha256
    refuse(faults)
    return found


def _settings_faults(settings: PrepareSettings) -> list[Fault]:
    faults = [*_chat_faults(settings), *_length_faults(settings)]
    try:
        _ = settings.keys
    except BadInput as no_condition:
        faults += no_condition.faults
    threshold = settings.near_duplicates
    if threshold is None:
        return faults
    refuse_without_rensa()
    if not 0 < threshold <= 1:
        faults.append(Fault(f"--similarity {threshold}", "must be above 0 and at most 1.", "0.75 is usual."))
    if settings.keep_duplicates:
        rule = "contradict each other: exact copies are near duplicates."
        faults.append(Fault("--keep-duplicates and --dedup minhash", rule, "Give one of them."))
    return faults


_SHORTEST_PART = 16
"""Tokens that a part of a text may be limited to: any character goes in."""


def _length_faults(settings: PrepareSettings) -> list[Fault]:
    faults = []
    least = _SHORTEST_PART if settings.cuts else 1
    if settings.min_length is not None and settings.min_length < 1:
        faults.append(Fault(f"--min-length {settings.min_length}", "must be 1 or more.", "64 is usual."))
    if settings.max_length is not None and settings.max_length < least:
        faults.append(Fault(f"--max-length {settings.max_length}", f"must be {least} or more.", "4096 is usual."))
    if settings.cuts and settings.split_sentences:
        rule = "contradict: a document of sentences is not cut."
        faults.append(Fault("--max-length and --split-sentences", rule, "Give one of them."))
    return faults


def _tokenize(
    job: Job,
    tokenizer: Tokenizer,
    evaluation: Sequence[EvaluationSet],
    found: Sequence[Span],
    workers: int | None,
    progress: bool,
    fast: bool,
    patience: float,
) -> None:
    """Completes every piece of the spans that is not completed yet."""
    count = (os.cpu_count() or 1) if workers is None else workers
    with (
        _one_thread(),
        # Its own: another process, or one that was killed, may have unpacked the same piece.
        TemporaryDirectory(prefix="unpacked-", dir=job.workspace) as folder,
        Progress(job.output.name, max(1, count), sum(span.size for span in found), progress) as bar,
    ):
        looked_for = _looked_for(job, evaluation)
        pieces = pending_pieces(job, found, Path(folder), bar)
        first = next(pieces, None)
        if first is None:
            return
        text = partial(sample, job, found, first)
        fast = fast and len(_tokenized(job)) < len(job.inputs) and job.settings.train_on is None
        framing = document_encoder(job, tokenizer, encoder_for(tokenizer, text, fast))
        work = partial(_work, job, framing, looked_for, bar)
        if not count:
            for piece in chain([first], pieces):
                work(0, piece)
            unchanged(job)
            return
        with Workers(count, work, _share_of_memory(count), patience) as pool:
            for _ in pool.map(chain([first], pieces), bar.look):
                pass
    unchanged(job)


def document_encoder(job: Job, tokenizer: Tokenizer, encode: Encoder) -> DocumentEncoder:
    """What is done to every document of a job, with the ids of `encode`."""
    settings = job.settings
    return DocumentEncoder(
        tokenizer=tokenizer,
        encode=encode,
        bos=job.bos,
        eod=job.eod,
        seed=settings.seed if settings.order == "shuffled" else None,
        control_tokens=settings.parse_special,
        split=_splitter(job),
        solid_bytes=solid_bytes(tokenizer),
        conversations=_conversation_encoder(job, tokenizer),
        filters=TextFilters(settings.filters) if settings.filters else None,
        min_length=settings.min_length,
        max_length=settings.max_length,
    )


def _conversation_encoder(job: Job, tokenizer: Tokenizer) -> ConversationEncoder | None:
    settings = job.settings
    if settings.train_on is None:
        return None
    return ConversationEncoder(
        template=ChatTemplate.load(tokenizer),
        train_on=settings.train_on,
        eod=job.eod,
        max_length=settings.max_length,
        truncate=settings.truncate,
        control_tokens=settings.parse_special,
    )


def _share_of_memory(workers: int) -> int:
    """Bytes that each worker may have to itself between two pieces."""
    return max(_SMALLEST_SHARE, _WORKERS_BYTES // workers)


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
    """Keeps libraries from threads of their own, which would not survive a fork and are too many beside workers."""
    settings = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _looked_for(job: Job, evaluation: Sequence[EvaluationSet]) -> TextChecks | None:
    """What workers look for in texts; names of evaluation items are kept for the pass that joins the pieces."""
    settings = job.settings
    if not settings.looks_at_text:
        return None
    # So that its table of letters is built once, before workers are forked.
    hashed_words([])
    if settings.decontaminate is None:
        return TextChecks(settings.near_duplicates is not None, None)
    ngrams = evaluation_ngrams(evaluation)
    note(job.evaluation, item_names(evaluation, ngrams))
    return TextChecks(settings.near_duplicates is not None, ngrams)


def _work(
    job: Job, framing: DocumentEncoder, looked_for: TextChecks | None, bar: Progress, worker: int, piece: Piece
) -> Finished:
    return tokenize_piece(job, framing, looked_for, piece, bar.counters(worker))


def _pieces(job: Job, check: bool) -> list[Finished]:
    return completed_pieces(job, spans(job.inputs, job.piece_size, job.settings.text_key), check)


def _join(job: Job, workers: int | None, patience: float, check: bool) -> Prepared:
    """Joins all parts, several at a time, each by a process of its own."""
    pieces = _pieces(job, check)
    decisions = decided(job, pieces, check=False)
    of = job.settings.parts
    if of == 1:
        joined = {1: join(job, pieces, decisions, 1)}
    else:
        there = {number: whole_part(job, decisions, number) for number in range(1, of + 1)}
        joined = {number: part for number, part in there.items() if part is not None}
        count = min(workers or os.cpu_count() or 1, of - len(joined))
        work = partial(_join_part, job, pieces, decisions)
        with Workers(count, work, _share_of_memory(count), patience) as pool:
            joined |= pool.map((number for number in there if number not in joined), lambda: None)
    clear(job.output)
    return Prepared(tuple(joined[number] for number in sorted(joined)), reused=False)


def _join_part(job: Job, pieces: Sequence[Finished], decisions: Decisions, worker: int, number: int) -> Joined:
    return join(job, pieces, decisions, number)


_SAMPLED_FILES = 16
"""Stretches, evenly among the inputs, from whose beginnings the sample comes."""
SAMPLED_CHARACTERS = 128_000
"""Of real text in all: a fifth of a second of the tokenizers library."""


def sample(job: Job, found: Sequence[Span], first: Piece | None = None) -> list[str]:
    """Beginnings of documents from stretches spread over the inputs, SAMPLED_CHARACTERS at most.

    Of standard input only the `first` piece can be looked at, once it is unpacked.
    """
    chosen = dict.fromkeys(found[i * len(found) // _SAMPLED_FILES] for i in range(_SAMPLED_FILES)) if found else {}
    share = SAMPLED_CHARACTERS // max(1, len(chosen))
    texts: list[str] = []
    for span in chosen:
        left = share
        for text in _beginnings(job, span, first):
            # Several documents of a file rather than one long one.
            texts.append(text[: min(left, share // 4 + 1)])
            left -= len(texts[-1])
            if left <= 0:
                break
    return texts


def _beginnings(job: Job, span: Span, first: Piece | None) -> Iterator[str]:
    """Texts from the beginning of a stretch."""
    file = span.piece.file
    source = job.inputs[file]
    if source.kind == "indexed":
        return
    keys = job.settings.keys
    if first is not None and first.file == file and source.streamed:
        yield from _texts(first, source.kind, keys)
    elif not span.streamed:
        yield from _texts(span.piece, source.kind, keys)
    elif source.path != STANDARD_INPUT and source.kind not in TABLES:  # which would have to come whole
        with TemporaryDirectory() as folder:
            with plain_stream(source) as stream:
                pieces = unpacked(stream, 0, source.kind in WHOLE, False, Path(folder), SAMPLED_CHARACTERS)
                piece = next(pieces, None)
            if piece is not None:
                yield from _texts(piece, source.kind, keys)


def _texts(piece: Piece, kind: Kind, keys: Keys) -> Iterator[str]:
    return (line.text for line in read_piece(piece, kind, keys) if isinstance(line, Document))
