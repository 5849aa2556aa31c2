"""Completes the pieces of a job: workers with the tokenizer, filters and checks that its settings ask for."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.preparation.chat_template import ChatTemplate, ConversationEncoder
from megatron_cpt.preparation.contamination import EvaluationSet, evaluation_ngrams, item_names
from megatron_cpt.preparation.documents import Document, Keys, read_piece
from megatron_cpt.preparation.encode_documents import DocumentEncoder, solid_bytes
from megatron_cpt.preparation.hashed_words import hashed_words
from megatron_cpt.preparation.input_kinds import STANDARD_INPUT, TABLES, WHOLE, Kind, plain_stream
from megatron_cpt.preparation.job import Job, note, unchanged
from megatron_cpt.preparation.pieces import Piece, Span, spans, unpacked
from megatron_cpt.preparation.pool import Progress, Workers
from megatron_cpt.preparation.process_piece import Finished, pending_pieces, tokenize_piece
from megatron_cpt.preparation.text_filters import TextFilters
from megatron_cpt.preparation.text_signatures import TextChecks
from megatron_cpt.tokenizer.gigatoken import Encoder, encoder_for
from megatron_cpt.tokenizer.tokenizer import SentenceSplitter, Tokenizer, sentence_splitter

_WORKERS_BYTES, _SMALLEST_SHARE = 512 << 20, 32 << 20
"""Memory of all workers together between two pieces, as long as none has less than the smallest share."""


def tokenize(
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
        fast = fast and len(job.datasets_read) < len(job.inputs) and job.settings.train_on is None
        framing = document_encoder(job, tokenizer, encoder_for(tokenizer, text, fast))
        work = partial(_work, job, framing, looked_for, bar)
        if not count:
            for piece in chain([first], pieces):
                work(0, piece)
            unchanged(job)
            return
        with Workers(count, work, share_of_memory(count), patience) as pool:
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


def share_of_memory(workers: int) -> int:
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
