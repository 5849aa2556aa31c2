"""Real text of the input, before anything is tokenized: beginnings of documents from all over it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from megatron_cpt.preparation.documents import Document, Keys, read_piece
from megatron_cpt.preparation.inputs import STANDARD_INPUT, Kind
from megatron_cpt.preparation.job import Job
from megatron_cpt.preparation.lines import decompressed
from megatron_cpt.preparation.pieces import Piece, Span, unpacked

SAMPLED_FILES = 16
"""Stretches, evenly among the inputs, from whose beginnings the sample comes."""
SAMPLED_CHARACTERS = 128_000
"""Of real text in all: a fifth of a second of the tokenizers library."""


def sample(job: Job, found: Sequence[Span], first: Piece | None = None) -> list[str]:
    """Beginnings of documents from stretches spread over the inputs, SAMPLED_CHARACTERS at most.

    Of standard input only the `first` piece can be looked at, once it is unpacked.
    """
    chosen = dict.fromkeys(found[i * len(found) // SAMPLED_FILES] for i in range(SAMPLED_FILES)) if found else {}
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
    keys = Keys(job.settings.text_key)
    if first is not None and first.file == file and source.streamed:
        yield from _texts(first, source.kind, keys)
    elif not span.streamed:
        yield from _texts(span.piece, source.kind, keys)
    elif source.path != STANDARD_INPUT:
        with TemporaryDirectory() as folder:
            with (
                source.path.open("rb") as raw,
                decompressed(raw, str(source.path), source.compression) as stream,
            ):
                pieces = unpacked(stream, 0, source.kind == "text", False, Path(folder), SAMPLED_CHARACTERS)
                piece = next(pieces, None)
            if piece is not None:
                yield from _texts(piece, source.kind, keys)


def _texts(piece: Piece, kind: Kind, keys: Keys) -> Iterator[str]:
    return (line.text for line in read_piece(piece, kind, keys) if isinstance(line, Document))
