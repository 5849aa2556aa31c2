"""Batches of lines to batches of tokenized documents: BOS and EOD around each, hashed, held out or not."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_cpt.corpus.dedup import ENTRY
from megatron_cpt.corpus.documents import Document, Rejected
from megatron_cpt.corpus.holdout import content_hash, is_held_out
from megatron_cpt.corpus.spool import RECORD, TokenizedDocuments, shuffle_key
from megatron_cpt.corpus.tokenize import Encoded, Tokenizer

BATCH_DOCUMENTS = 2048
BATCH_CHARACTERS = 4_000_000
"""A batch ends at either: bounds memory, and is enough work to share among threads."""

BATCHES_AHEAD = 2
"""Batches that wait for their ids: keeps the tokenizer busy, bounds memory."""
Batch = Sequence[Document | Rejected]
"""Some lines of the inputs, in the order read."""


@dataclass(frozen=True)
class TokenizedBatch:
    """What became of a batch."""

    training: TokenizedDocuments
    """Documents to train on, in the order read."""
    held_out: TokenizedDocuments
    """Documents held out for validation."""
    entries: npt.NDArray[np.void]
    """ENTRY of every document of both, in the order read."""
    rejected: list[Rejected]
    """Lines that give no document, in the order read."""


@dataclass(frozen=True)
class Framing:
    """What is done to every document, whichever batch it is in."""

    tokenizer: Tokenizer
    bos: int | None
    """Opens each document. None: nothing does."""
    eod: int | None
    """Closes each document. None: nothing does."""
    seed: int
    """Seed of the shuffled order."""
    holdout: float
    """Share of documents, 0 to 1, that are held out."""

    def frame(self, batch: Batch, encoded: Encoded, first: int) -> TokenizedBatch:
        """A batch and the ids of its documents to documents of a dataset, numbered from `first`."""
        documents = [line for line in batch if isinstance(line, Document)]
        rejected = [line for line in batch if isinstance(line, Rejected)]
        reasons = self._unusable(encoded)
        if reasons:
            rejected += [Rejected(documents[n].file, documents[n].line, why) for n, why in reasons.items()]
            rejected.sort(key=lambda line: (line.file, line.line))
            documents = [document for n, document in enumerate(documents) if n not in reasons]
            encoded = encoded.chosen(~np.isin(np.arange(len(encoded.lengths)), list(reasons)))
        framed = self._with_ends(encoded)
        records = np.zeros(len(documents), RECORD)
        entries = np.zeros(len(documents), ENTRY)
        contents = [document.text.encode() for document in documents]
        hashes = [content_hash(content) for content in contents]
        records["content_hash"] = entries["content_hash"] = np.frombuffer(b"".join(hashes), "<u8")
        records["number"] = entries["number"] = np.arange(first, first + len(documents))
        records["bytes"] = [len(content) for content in contents]
        records["tokens"] = framed.lengths
        records["key"] = [shuffle_key(self.seed, document.file, document.line) for document in documents]
        entries["file"] = [document.file for document in documents]
        entries["line"] = [document.line for document in documents]
        held_out = np.array([is_held_out(content, self.holdout) for content in hashes], np.bool_)
        training = framed.chosen(~held_out) if held_out.any() else framed
        return TokenizedBatch(
            training=TokenizedDocuments(training.tokens, records[~held_out]),
            held_out=TokenizedDocuments(framed.chosen(held_out).tokens, records[held_out]),
            entries=entries,
            rejected=rejected,
        )

    def _unusable(self, encoded: Encoded) -> dict[int, str]:
        """Documents without tokens or with control tokens, and why they cannot be used."""
        reasons = {int(number): "no tokens" for number in np.flatnonzero(encoded.lengths == 0)}
        for number, token in self.tokenizer.control_tokens(encoded).items():
            reasons[number] = f"the text gives the control token {token}"
        return reasons

    def _with_ends(self, encoded: Encoded) -> Encoded:
        """Every document with its BOS and its EOD, where there is one."""
        added = (self.bos is not None) + (self.eod is not None)
        lengths = encoded.lengths + added
        ends = np.cumsum(lengths)
        tokens = np.empty(int(lengths.sum()), np.int32)
        is_text = np.ones(len(tokens), np.bool_)
        if self.eod is not None:
            tokens[ends - 1], is_text[ends - 1] = self.eod, False
        if self.bos is not None:
            tokens[ends - lengths], is_text[ends - lengths] = self.bos, False
        tokens[is_text] = encoded.tokens
        return Encoded(tokens, lengths)


def batches(lines: Iterable[Document | Rejected]) -> Iterator[list[Document | Rejected]]:
    """The lines in the order read, some thousands at a time."""
    batch: list[Document | Rejected] = []
    characters = 0
    for line in lines:
        batch.append(line)
        characters += len(line.text) if isinstance(line, Document) else 0
        if len(batch) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def encoded_batches(
    lines: Iterable[Document | Rejected], encode: Callable[[Sequence[str]], Encoded]
) -> Iterator[tuple[Batch, Encoded]]:
    """Batches and the ids of their documents; the next are read and encoded while one is in use."""
    waiting: deque[tuple[Batch, Future[Encoded]]] = deque()
    with ThreadPoolExecutor(1) as ahead:
        for batch in batches(lines):
            texts = [line.text for line in batch if isinstance(line, Document)]
            waiting.append((batch, ahead.submit(encode, texts)))
            if len(waiting) > BATCHES_AHEAD:
                done, ids = waiting.popleft()
                yield done, ids.result()
        for done, ids in waiting:
            yield done, ids.result()
