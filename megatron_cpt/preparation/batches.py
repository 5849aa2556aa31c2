"""Batches of documents to tokenized documents: BOS and EOD around each, hashed, with the keys that place it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_cpt.preparation.documents import Document, Rejected
from megatron_cpt.preparation.holdout import content_hash, holdout_keys
from megatron_cpt.preparation.sorted_run import RECORD, TokenizedDocuments, shuffle_keys
from megatron_cpt.tokenizer.encoded import Encoded
from megatron_cpt.tokenizer.tokenize import Tokenizer

BATCH_DOCUMENTS = 2048
BATCH_CHARACTERS = 1_000_000
"""A batch ends at either: bounds memory."""


@dataclass(frozen=True)
class Framing:
    """What is done to every document, whichever batch it is in."""

    tokenizer: Tokenizer
    encode: Callable[[Sequence[str]], Encoded]
    """The tokenizer, or what stands in for it (fast.py)."""
    bos: int | None
    """Opens each document. None: nothing does."""
    eod: int | None
    """Closes each document. None: nothing does."""
    seed: int | None
    """Seed of the shuffled order. None: documents stay in the order read."""
    control_tokens: bool
    """Whether control tokens that the text gives are meant (--parse-special), and no reason to reject it."""
    split: Callable[[str], list[str]] | None
    """Text to sentences, each a sequence of its own. None: a document is one sequence."""

    def frame(self, file: int, batch: Sequence[Document]) -> tuple[TokenizedDocuments, list[Rejected]]:
        """The documents of a batch of an input file tokenized, and those that cannot be used."""
        encoded, sentences = self._encoded(batch)
        reasons = self._unusable(encoded)
        if reasons:
            usable = ~np.isin(np.arange(len(batch)), list(reasons))
            sentences = [count for count, keep in zip(sentences, usable, strict=bool(sentences)) if keep]
            encoded = encoded.chosen(usable)
        documents = [document for n, document in enumerate(batch) if n not in reasons]
        framed = self._with_ends(encoded)
        records = np.zeros(len(documents), RECORD)
        self._describe(file, documents, records)
        records["tokens"] = framed.lengths
        records["sentences"] = [len(counts) for counts in sentences] if self.split else 0
        for counts in sentences:
            counts[0] += self.bos is not None
            counts[-1] += self.eod is not None
        ids = b"".join(document.id.encode() for document in documents)
        tokenized = TokenizedDocuments(
            records,
            framed.tokens,
            np.array([count for counts in sentences for count in counts], np.int32),
            np.frombuffer(ids, np.uint8),
        )
        return tokenized, [Rejected(batch[n].line, why, batch[n].id) for n, why in sorted(reasons.items())]

    def _encoded(self, batch: Sequence[Document]) -> tuple[Encoded, list[list[int]]]:
        """The ids of each document and, where they are split, the tokens of its sentences that give any."""
        if self.split is None:
            return self.encode([document.text for document in batch]), []
        parts = [self.split(document.text) for document in batch]
        encoded = self.encode([sentence for sentences in parts for sentence in sentences])
        counts = np.split(encoded.lengths, np.cumsum([len(sentences) for sentences in parts])[:-1])
        lengths = np.array([int(count.sum()) for count in counts], np.int64)
        return Encoded(encoded.tokens, lengths), [count[count > 0].tolist() for count in counts]

    def _describe(self, file: int, documents: list[Document], records: npt.NDArray[np.void]) -> None:
        contents = [document.text.encode() for document in documents]
        records["content_hash"] = np.frombuffer(b"".join(map(content_hash, contents)), "<u8")
        records["holdout_key"] = holdout_keys(records["content_hash"])
        records["bytes"] = [len(content) for content in contents]
        records["place"] = [document.place for document in documents]
        records["line"] = [document.line for document in documents]
        records["id_bytes"] = [len(document.id.encode()) for document in documents]
        places = records["place"]
        records["key"] = places if self.seed is None else shuffle_keys(self.seed, file, places)

    def _unusable(self, encoded: Encoded) -> dict[int, str]:
        """Documents without tokens or with control tokens, and why they cannot be used."""
        reasons = {int(number): "no tokens" for number in np.flatnonzero(encoded.lengths == 0)}
        if not self.control_tokens:
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


def batches(lines: Iterable[Document | Rejected], rejected: list[Rejected]) -> Iterator[list[Document]]:
    """The documents in the order read, some at a time; rejected lines are put on the list."""
    batch: list[Document] = []
    characters = 0
    for line in lines:
        if isinstance(line, Rejected):
            rejected.append(line)
            continue
        batch.append(line)
        characters += len(line.text)
        if len(batch) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
