"""Documents to tokens with BOS and EOD: what is done to each, whichever batch and piece it is in.

Documents shorter than --min-length are left out. Longer ones than --max-length are cut into parts, each a document of
its own with the line and the id of the whole. A part keeps the hash of the whole document: so all are held out, or are
copies, where the whole would be.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from megatron_cpt.corpus.columns import LOSS_SPAN
from megatron_cpt.preparation.chat_template import ConversationEncoder, TokenizedConversation
from megatron_cpt.preparation.conversations import Unusable
from megatron_cpt.preparation.documents import Document, Rejected
from megatron_cpt.preparation.sorted_runs import RECORD, TokenizedDocuments, content_hash, holdout_keys, shuffle_keys
from megatron_cpt.preparation.text_filters import TextFilters
from megatron_cpt.tokenizer.formats import Encoded
from megatron_cpt.tokenizer.tokenizer import Tokenizer

TOO_SHORT = "--min-length"
"""Why a document is left out, as a reason that is counted."""
_SAMPLED = 16
"""One document of so many has its words counted."""
_BLANKS = b" \t\n\r"


@dataclass(frozen=True)
class TextCounts:
    """How the tokens of some documents are to their text."""

    tokens: int = 0
    """Without BOS and EOD."""
    unknown: int = 0
    """Of the tokens, those that stand for text which the tokenizer cannot say."""
    bytes: int = 0
    """UTF-8 bytes of text that were compared, blanks apart; 0 where nothing can be lost."""
    lost: int = 0
    """Of these bytes, those that the tokens do not stand for."""
    sampled_tokens: int = 0
    """Tokens of the documents whose words were counted."""
    sampled_words: int = 0
    truncated: int = 0
    """Conversations that were cut behind an answer."""
    cut: int = 0
    """Documents that are in parts."""
    parts: int = 0
    """Their parts."""

    def __add__(self, other: "TextCounts") -> "TextCounts":
        return TextCounts(*(own + its for own, its in zip(astuple(self), astuple(other), strict=True)))


def solid_bytes(tokenizer: Tokenizer) -> npt.NDArray[np.int64] | None:
    """The bytes, blanks apart, that each token stands for: int64[vocabulary]. None: no text can be lost."""
    if tokenizer.says_all:
        return None
    library = tokenizer.library
    solid = tokenizer.token_bytes()
    for number in np.flatnonzero(solid).tolist():
        token = library.token_of(number)
        solid[number] -= sum(token.count(blank) for blank in " \u2581\t\n\r")
    if tokenizer.unknown is not None:
        solid[tokenizer.unknown] = 0
    return np.maximum(solid, 0)


@dataclass(frozen=True)
class EncodedBatch:
    """What became of a batch."""

    documents: list[Document]
    """Those that are taken, in the order read; parts of those that were cut."""
    tokenized: TokenizedDocuments
    """The same in tokens."""
    rejected: list[Rejected]
    """Those that cannot be used."""
    left_out: Counter[str]
    """Those that are not wanted, by the reason."""
    counts: TextCounts


@dataclass(frozen=True)
class DocumentEncoder:
    """What is done to every document, whichever batch it is in."""

    tokenizer: Tokenizer
    encode: Callable[[Sequence[str]], Encoded]
    """The tokenizer, or what stands in for it (gigatoken.py)."""
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
    solid_bytes: npt.NDArray[np.int64] | None
    """What each token stands for, where text can be lost."""
    conversations: ConversationEncoder | None = None
    """Encodes conversations, with what opens and closes them, in place of `encode`. None: documents are texts."""
    min_length: int | None = None
    """Tokens, BOS and EOD counted, that a document has at least. None: any number."""
    max_length: int | None = None
    """Tokens, BOS and EOD counted, that a text has at most; longer ones are cut. None: any number."""
    filters: TextFilters | None = None
    """Leave texts out. None: none is given."""

    def frame(self, file: int, batch: Sequence[Document]) -> EncodedBatch:
        """What becomes of a batch of documents of an input file."""
        if self.conversations is not None:
            return self._frame_conversations(self.conversations, file, batch)
        batch, left_out = self._filtered(batch)
        encoded, sentences = self._encoded(batch)
        long_enough = encoded.lengths + self._ends >= (self.min_length or 0)
        long_enough |= encoded.lengths == 0  # which is a reason to reject it
        encoded, sentences = _chosen(encoded, sentences, long_enough)
        batch = [document for document, keep in zip(batch, long_enough, strict=True) if keep]
        rejected: list[Rejected] = []
        if self.max_length is not None and not _tokenized(batch):
            batch, encoded = self._cut(batch, encoded, rejected)
        # Of a document in parts all are rejected with one.
        reasons = self._unusable(encoded, _tokenized(batch))
        lines = {batch[n].line: Rejected(batch[n].line, why, batch[n].id) for n, why in sorted(reasons.items())}
        rejected += lines.values()
        usable = np.array([document.line not in lines for document in batch], np.bool_)
        encoded, sentences = _chosen(encoded, sentences, usable)
        documents = [document for document in batch if document.line not in lines]
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
            np.empty(0, LOSS_SPAN),
        )
        compared = self._counts(encoded, documents, records["content_hash"])
        left_out += Counter({TOO_SHORT: int(np.count_nonzero(~long_enough))})
        return EncodedBatch(documents, tokenized, sorted(rejected, key=lambda line: line.line), left_out, compared)

    def _frame_conversations(self, encoder: ConversationEncoder, file: int, batch: Sequence[Document]) -> EncodedBatch:
        documents: list[Document] = []
        tokenized: list[TokenizedConversation] = []
        rejected: list[Rejected] = []
        short: Counter[str] = Counter()
        for document in batch:
            assert document.conversation is not None, "documents of --chat are conversations"
            try:
                one = encoder.encode(document.conversation)
            except Unusable as reason:
                rejected.append(Rejected(document.line, str(reason), document.id))
                continue
            if len(one.ids) < (self.min_length or 0):
                short[TOO_SHORT] += 1
                continue
            tokenized.append(one)
            documents.append(replace(document, text=one.text))
        encoded = Encoded.joined([one.ids for one in tokenized])
        records = np.zeros(len(documents), RECORD)
        self._describe(file, documents, records)
        records["tokens"] = encoded.lengths
        records["spans"] = [len(one.spans) for one in tokenized]
        counts = self._counts(encoded, documents, records["content_hash"])
        counts = replace(counts, truncated=sum(one.truncated for one in tokenized))
        ids = b"".join(document.id.encode() for document in documents)
        spans = np.concatenate([np.empty(0, LOSS_SPAN), *(one.spans for one in tokenized)])
        ids_of_all = np.frombuffer(ids, np.uint8)
        whole = replace(no_documents(), records=records, tokens=encoded.tokens, ids=ids_of_all, spans=spans)
        return EncodedBatch(documents, whole, rejected, short, counts)

    def _filtered(self, batch: Sequence[Document]) -> tuple[Sequence[Document], Counter[str]]:
        """The documents that the filters keep, and the others by the reason."""
        if self.filters is None:
            return batch, Counter()
        reasons = [self.filters.reason(document.text) for document in batch]
        kept = [document for document, reason in zip(batch, reasons, strict=True) if reason is None]
        return kept, Counter(reason for reason in reasons if reason is not None)

    def _cut(
        self, batch: Sequence[Document], encoded: Encoded, rejected: list[Rejected]
    ) -> tuple[list[Document], Encoded]:
        """The batch with the texts that are too long in parts; those that cannot be are put on the list."""
        assert self.max_length is not None, "without it nothing is too long"
        most = self.max_length - self._ends
        if encoded.lengths.max(initial=0) <= most:
            return [*batch], encoded
        documents: list[Document] = []
        ids: list[npt.NDArray[np.int32]] = []
        for document, whole in zip(batch, encoded.each(), strict=True):
            if len(whole) <= most:
                documents.append(document)
                ids.append(whole)
                continue
            try:
                texts, encoded_texts = parts_of(document.text, most, self.encode)
            except Unusable as reason:
                rejected.append(Rejected(document.line, str(reason), document.id))
                continue
            of_whole = int.from_bytes(content_hash(document.content), "little")
            for number, text in enumerate(texts, start=1):
                documents.append(replace(document, text=text, hashed=(of_whole, len(text.encode())), part=number))
            ids += encoded_texts.each()
        return documents, Encoded.joined(ids)

    @property
    def _ends(self) -> int:
        """Tokens that open and close a document."""
        return (self.bos is not None) + (self.eod is not None)

    def _counts(self, encoded: Encoded, documents: Sequence[Document], hashes: npt.NDArray[np.uint64]) -> TextCounts:
        sampled = np.flatnonzero(hashes % np.uint64(_SAMPLED) == 0)
        sampled = sampled[[bool(documents[n].text) for n in sampled.tolist()]]
        unknown = self.tokenizer.unknown
        compared = lost = 0
        if self.solid_bytes is not None and not _tokenized(documents):
            ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.solid_bytes[encoded.tokens])])
            said = np.diff(ends[np.concatenate([np.zeros(1, np.int64), np.cumsum(encoded.lengths)])])
            texts = np.array([len(one.text.encode().translate(None, _BLANKS)) for one in documents], np.int64)
            compared, lost = int(texts.sum()), int(np.maximum(texts - said, 0).sum())
        return TextCounts(
            tokens=len(encoded.tokens),
            unknown=0 if unknown is None else int(np.count_nonzero(encoded.tokens == unknown)),
            bytes=compared,
            lost=lost,
            sampled_tokens=int(encoded.lengths[sampled].sum()),
            sampled_words=sum(len(documents[n].text.split()) for n in sampled.tolist()),
            cut=sum(document.part == 1 for document in documents),
            parts=sum(document.part > 0 for document in documents),
        )

    def _encoded(self, batch: Sequence[Document]) -> tuple[Encoded, list[list[int]]]:
        """The ids of each document and, where they are split, the tokens of its sentences that give any."""
        if _tokenized(batch):
            return Encoded.joined([document.tokens for document in batch if document.tokens is not None]), []
        if self.split is None or not batch:
            return self.encode([document.text for document in batch]), []
        parts = [self.split(document.text) for document in batch]
        encoded = self.encode([sentence for sentences in parts for sentence in sentences])
        counts = np.split(encoded.lengths, np.cumsum([len(sentences) for sentences in parts])[:-1])
        lengths = np.array([int(count.sum()) for count in counts], np.int64)
        return Encoded(encoded.tokens, lengths), [count[count > 0].tolist() for count in counts]

    def _describe(self, file: int, documents: list[Document], records: npt.NDArray[np.void]) -> None:
        contents = [document.content for document in documents]
        records["content_hash"] = np.frombuffer(b"".join(map(content_hash, contents)), "<u8")
        records["bytes"] = [len(document.text.encode()) for document in documents]
        for number, document in enumerate(documents):
            if document.hashed is not None:
                records["content_hash"][number], records["bytes"][number] = document.hashed
        records["holdout_key"] = holdout_keys(records["content_hash"])
        records["place"] = [document.place for document in documents]
        records["line"] = [document.line for document in documents]
        records["part"] = [document.part for document in documents]
        records["id_bytes"] = [len(document.id.encode()) for document in documents]
        places = records["place"]
        records["key"] = places if self.seed is None else shuffle_keys(self.seed, file, places)

    def _unusable(self, encoded: Encoded, tokenized: bool) -> dict[int, str]:
        """Documents without tokens or, unless they are tokens already, with control tokens, and why they cannot be
        used."""
        reasons = {int(number): "no tokens" for number in np.flatnonzero(encoded.lengths == 0)}
        if not (self.control_tokens or tokenized):
            for number, token in self.tokenizer.control_tokens(encoded).items():
                reasons[number] = f"the text gives the control token {token}"
        return reasons

    def _with_ends(self, encoded: Encoded) -> Encoded:
        """Every document with its BOS and its EOD, where there is one."""
        lengths = encoded.lengths + self._ends
        ends = np.cumsum(lengths)
        tokens = np.empty(int(lengths.sum()), np.int32)
        is_text = np.ones(len(tokens), np.bool_)
        if self.eod is not None:
            tokens[ends - 1], is_text[ends - 1] = self.eod, False
        if self.bos is not None:
            tokens[ends - lengths], is_text[ends - lengths] = self.bos, False
        tokens[is_text] = encoded.tokens
        return Encoded(tokens, lengths)


def _chosen(
    encoded: Encoded, sentences: list[list[int]], which: npt.NDArray[np.bool_]
) -> tuple[Encoded, list[list[int]]]:
    """The documents where bool[documents] is true; `sentences` are empty where none are split."""
    if which.all():
        return encoded, sentences
    return encoded.chosen(which), [one for one, keep in zip(sentences, which, strict=bool(sentences)) if keep]


def _tokenized(batch: Sequence[Document]) -> bool:
    """Whether documents, of one piece, are tokens already."""
    return len(batch) > 0 and batch[0].tokens is not None


def no_documents() -> TokenizedDocuments:
    """None, to join others to."""
    return TokenizedDocuments(
        np.empty(0, RECORD),
        np.empty(0, np.int32),
        np.empty(0, np.int32),
        np.empty(0, np.uint8),
        np.empty(0, LOSS_SPAN),
    )


_ENDS = (
    re.compile(r"\n\s*\n\s*"),
    re.compile(r"\n\s*"),
    re.compile(r"[.!?\u2026]['\")\]\u2019\u201d\u00bb]*\s+|[\u3002\uff01\uff1f]+"),
    re.compile(r"\s+"),
    re.compile(r"(?s:.)"),
)
"""Where a text is cut: behind a paragraph; a paragraph that is too long behind a line, a longer line behind a sentence,
then behind a word, then anywhere."""


def parts_of(text: str, most: int, encode: Callable[[Sequence[str]], Encoded]) -> tuple[list[str], Encoded]:
    """Parts of at most `most` tokens that are the text, one behind the other, and the ids of each.

    Each takes as many paragraphs as go in by their own numbers of tokens, which may be some more than they have
    together. Raises Unusable where a character alone has more tokens.
    """
    units, counts = [text], encode([text]).lengths
    for end in _ENDS:
        if counts.max() <= most:
            break
        units = [
            piece
            for unit, count in zip(units, counts.tolist(), strict=True)
            for piece in (_split(unit, end) if count > most else [unit])
        ]
        counts = encode(units).lengths
    if counts.max() > most:
        raise Unusable(f"a character of more than the {most:,} tokens that --max-length leaves")
    groups: list[list[str]] = []
    room = 0
    for unit, count in zip(units, counts.tolist(), strict=True):
        if count > room or not groups:
            groups.append([])
            room = most
        groups[-1].append(unit)
        room -= count
    while True:
        parts = ["".join(group) for group in groups]
        encoded = encode(parts)
        if encoded.lengths.max() <= most:
            return parts, encoded
        # A tokenizer may give units more tokens together than apart.
        groups = [
            half
            for group, count in zip(groups, encoded.lengths.tolist(), strict=True)
            for half in ((group[: len(group) // 2], group[len(group) // 2 :]) if count > most else (group,))
        ]


def _split(text: str, end: re.Pattern[str]) -> list[str]:
    """The text cut behind each match."""
    cuts = [0, *(found.end() for found in end.finditer(text)), len(text)]
    return [text[start:stop] for start, stop in pairwise(cuts) if stop > start]
