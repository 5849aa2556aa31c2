"""One piece: read, tokenized with BOS and EOD, hashed, sorted and stored, so that it need not be done again."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.corpus.manifest import LOSS_SPAN
from megatron_cpt.preparation.chat_template import ConversationEncoder, TokenizedConversation
from megatron_cpt.preparation.conversations import Unusable
from megatron_cpt.preparation.documents import Document, Filtered, Line, Rejected, read_piece
from megatron_cpt.preparation.indexed_input import TokenReader
from megatron_cpt.preparation.inputs import (
    STANDARD_INPUT,
    WHOLE,
    Piece,
    Span,
    piece_name,
    plain_stream,
    unpacked,
)
from megatron_cpt.preparation.job import Job, note, noted
from megatron_cpt.preparation.pool import Progress
from megatron_cpt.preparation.sorted_runs import (
    RECORD,
    SortedRun,
    TokenBuffer,
    TokenizedDocuments,
    content_hash,
    holdout_keys,
    shuffle_keys,
    write_run,
)
from megatron_cpt.preparation.text_signatures import (
    BANDS,
    FoundRun,
    TextChecks,
    TextSignatures,
    join_signatures,
    text_signatures,
    write_signatures,
)
from megatron_cpt.tokenizer.formats import Encoded
from megatron_cpt.tokenizer.tokenizer import Tokenizer

_BATCH_DOCUMENTS = 2048
_BATCH_CHARACTERS = 1_000_000
"""A batch ends at either: bounds memory."""
_TOKEN_CHARACTERS = 4
"""Of a token, about."""


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

    def frame(self, file: int, batch: Sequence[Document]) -> tuple[TokenizedDocuments, list[Rejected], TextCounts]:
        """The documents of a batch of an input file tokenized, and those that cannot be used."""
        if self.conversations is not None:
            return self._frame_conversations(self.conversations, file, batch)
        encoded, sentences = self._encoded(batch)
        reasons = self._unusable(encoded, _tokenized(batch))
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
            np.empty(0, LOSS_SPAN),
        )
        compared = self._counts(encoded, documents, records["content_hash"])
        return tokenized, [Rejected(batch[n].line, why, batch[n].id) for n, why in sorted(reasons.items())], compared

    def _frame_conversations(
        self, encoder: ConversationEncoder, file: int, batch: Sequence[Document]
    ) -> tuple[TokenizedDocuments, list[Rejected], TextCounts]:
        documents: list[Document] = []
        tokenized: list[TokenizedConversation] = []
        rejected: list[Rejected] = []
        for document in batch:
            assert document.conversation is not None, "documents of --chat are conversations"
            try:
                tokenized.append(encoder.encode(document.conversation))
                documents.append(replace(document, text=tokenized[-1].text))
            except Unusable as reason:
                rejected.append(Rejected(document.line, str(reason), document.id))
        encoded = Encoded.joined([one.ids for one in tokenized])
        records = np.zeros(len(documents), RECORD)
        self._describe(file, documents, records)
        records["tokens"] = encoded.lengths
        records["spans"] = [len(one.spans) for one in tokenized]
        counts = self._counts(encoded, documents, records["content_hash"])
        counts = replace(counts, truncated=sum(one.truncated for one in tokenized))
        ids = b"".join(document.id.encode() for document in documents)
        spans = np.concatenate([np.empty(0, LOSS_SPAN), *(one.spans for one in tokenized)])
        nothing = _nothing()
        return (
            replace(nothing, records=records, tokens=encoded.tokens, ids=np.frombuffer(ids, np.uint8), spans=spans),
            rejected,
            counts,
        )

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
        )

    def _encoded(self, batch: Sequence[Document]) -> tuple[Encoded, list[list[int]]]:
        """The ids of each document and, where they are split, the tokens of its sentences that give any."""
        if _tokenized(batch):
            return Encoded.joined([document.tokens for document in batch if document.tokens is not None]), []
        if self.split is None:
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


def _tokenized(batch: Sequence[Document]) -> bool:
    """Whether documents, of one piece, are tokens already."""
    return len(batch) > 0 and batch[0].tokens is not None


def batches(lines: Iterable[Line], rejected: list[Rejected]) -> Iterator[list[Document]]:
    """The documents in the order read, some at a time; rejected lines are put on the list."""
    batch: list[Document] = []
    characters = 0
    for line in lines:
        if isinstance(line, Rejected):
            rejected.append(line)
        if not isinstance(line, Document):
            continue
        batch.append(line)
        characters += len(line.text) if line.tokens is None else _TOKEN_CHARACTERS * len(line.tokens)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


@dataclass(frozen=True)
class Finished:
    """What became of a piece. Its documents are in the sorted run of the same name."""

    file: int
    """Number of the file among the inputs."""
    number: int
    """Number of the piece within the file."""
    lines: int
    """Lines, rows, or whole files, read; blank ones too."""
    documents: int
    tokens: int
    """BOS and EOD counted."""
    sentences: int
    """0 unless they are split."""
    id_bytes: int
    spans: int
    """Spans of tokens that count in the loss; 0 where all do."""
    bytes: int
    """UTF-8 bytes of the text of the documents."""
    rejected: list[Rejected]
    """Lines that give no document."""
    filtered: int
    """Documents that do not meet --where."""
    counts: TextCounts
    digest: str
    """Hash of what was read from standard input; empty otherwise."""
    checksum: int
    """Of the sorted run."""
    signatures: int
    """Documents with a MinHash signature: all, or 0 where none are made."""
    bands: int
    """Bands of all signatures."""
    overlaps: int
    """Overlaps of a document with an evaluation item."""
    found_checksum: int
    """Of what the texts showed (text_signatures.py); 0 where nothing was looked for."""

    def found(self, job: Job) -> FoundRun:
        """What the texts showed."""
        path = _path(job, piece_name(self.file, self.number), "found")
        return FoundRun(path, self.signatures, self.bands, self.overlaps)

    def run(self, job: Job) -> SortedRun:
        """The documents."""
        path = _path(job, piece_name(self.file, self.number), "run")
        return SortedRun(path, job.dtype, self.documents, self.tokens, self.sentences, self.id_bytes, self.spans)


def _path(job: Job, name: str, ending: str) -> Path:
    return job.path(f"{name}.{ending}")


def finished(job: Job, piece: Piece) -> Finished | None:
    """What became of a piece, if it was done before, from the same bytes, and is whole."""
    found = _read_finished(job, piece.file, piece.number, check=True)
    return found if found is not None and found.digest == piece.digest else None


def _read_finished(job: Job, file: int, number: int, check: bool) -> Finished | None:
    """What became of the piece of a file, if it was done. `check` reads its documents and trusts no others: what
    a machine wrote may have been lost with its power, or on the way to another."""
    content = noted(_path(job, piece_name(file, number), "json"))
    if content is None:
        return None
    content["rejected"] = [Rejected(**line) for line in content["rejected"]]
    content["counts"] = TextCounts(**content["counts"])
    done = Finished(**content)
    return done if not check or _is_whole(job, done) else None


def _is_whole(job: Job, done: Finished) -> bool:
    if job.settings.looks_at_text and not done.found(job).is_whole(done.found_checksum):
        return False
    return done.run(job).is_whole(done.checksum)


def tokenize_piece(
    job: Job, framing: DocumentEncoder, looked_for: TextChecks | None, piece: Piece, counters: npt.NDArray[np.int64]
) -> Finished:
    """Does a piece. `counters`, int64[3], are raised on the way by documents, bytes of text and tokens."""
    source = job.inputs[piece.file]
    rejected: list[Rejected] = []
    counts = TextCounts()
    read: Counter[type[Line]] = Counter()
    reader = TokenReader(framing.tokenizer, job.bos, job.eod, looked_for is not None)
    lines = _counted(read_piece(piece, source.kind, job.settings.keys, reader.documents), read)
    parts = [_nothing()]
    findings: list[TextSignatures] = []
    with TokenBuffer(job.workspace, job.dtype) as tokens:
        for batch in batches(lines, rejected):
            part, unusable, of_batch = framing.frame(piece.file, batch)
            rejected += unusable
            counts += of_batch
            _check_ids(job, part)
            tokens.add(part.tokens)
            parts.append(replace(part, tokens=_nothing().tokens))
            if looked_for is not None:
                findings.append(text_signatures(looked_for, _texts(batch, unusable)))
            counters += (len(part.records), int(part.records["bytes"].sum()), len(part.tokens))
        whole = TokenizedDocuments.joined(parts)
        found = join_signatures(findings, [len(part.records) for part in parts[1:]])
        del parts, findings
        found_checksum = 0 if looked_for is None else _write_found(job, piece, found, whole)
        checksum = write_run(_path(job, piece.name, "run"), whole, tokens)
    done = Finished(
        file=piece.file,
        number=piece.number,
        lines=read.total(),
        documents=len(whole.records),
        tokens=tokens.count,
        sentences=len(whole.sentences),
        id_bytes=len(whole.ids),
        spans=len(whole.spans),
        bytes=int(whole.records["bytes"].sum()),
        rejected=sorted(rejected, key=lambda line: line.line),
        filtered=read[Filtered],
        counts=counts,
        digest=piece.digest,
        checksum=checksum,
        signatures=len(found.signatures),
        bands=int(found.signed.sum()) * BANDS,
        overlaps=len(found.overlaps),
        found_checksum=found_checksum,
    )
    # What has its record is done: the run came before.
    note(_path(job, piece.name, "json"), asdict(done))
    if source.streamed:
        piece.path.unlink()
    return done


def _counted(lines: Iterable[Line], seen: "Counter[type[Line]]") -> Iterator[Line]:
    """The lines, counted by what they are."""
    for line in lines:
        seen[type(line)] += 1
        yield line


def _write_found(job: Job, piece: Piece, found: TextSignatures, whole: TokenizedDocuments) -> int:
    order = np.argsort(whole.records["key"], kind="stable")
    return write_signatures(_path(job, piece.name, "found"), found, order)


def _texts(batch: Sequence[Document], unusable: Sequence[Rejected]) -> list[str]:
    """The texts of the documents that were tokenized."""
    lines = {rejected.line for rejected in unusable}
    return [document.text for document in batch if document.line not in lines]


def _check_ids(job: Job, part: TokenizedDocuments) -> None:
    """An id that does not fit is an error, never a wrap."""
    if len(part.tokens) and not 0 <= int(part.tokens.min()) <= int(part.tokens.max()) < job.vocabulary_size:
        rule = f"gives ids outside 0 to {job.vocabulary_size - 1}."
        raise BadInput(Fault(job.tokenizer_folder, rule, "Use a tokenizer whose vocabulary holds its own ids."))


def _nothing() -> TokenizedDocuments:
    return TokenizedDocuments(
        np.empty(0, RECORD),
        np.empty(0, np.int32),
        np.empty(0, np.int32),
        np.empty(0, np.uint8),
        np.empty(0, LOSS_SPAN),
    )


def _end_stream(job: Job, file: int, pieces: int) -> None:
    """Notes how many pieces a stream gave: it was read to its end."""
    note(_path(job, f"{file:06d}", "end.json"), pieces)


def _pieces_of_stream(job: Job, file: int) -> int | None:
    """How many pieces a stream gave; None if it was not read to its end."""
    count: int | None = noted(_path(job, f"{file:06d}", "end.json"))
    return count


def pending_pieces(job: Job, found: Iterable[Span], folder: Path, bar: Progress) -> Iterator[Piece]:
    """The pieces that are not completed yet; those of streams are unpacked into a folder."""
    for span in found:
        if not span.streamed:
            pieces: Iterable[Piece] = [span.piece]
        elif _known(job, span.piece.file):
            bar.skip(span.size)
            continue
        else:
            pieces = _unpacked(job, span.piece.file, folder)
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


def _unpacked(job: Job, file: int, folder: Path) -> Iterator[Piece]:
    source = job.inputs[file]
    standard = source.path == STANDARD_INPUT
    number = 0
    with plain_stream(source) as stream:
        for piece in unpacked(stream, file, source.kind in WHOLE, standard, folder, job.piece_size):
            number += 1
            yield replace(piece, origin=job.sources[file].path)
    _end_stream(job, file, number)


def _streamed(job: Job, file: int, check: bool) -> list[Finished] | None:
    """The pieces of a stream that was read to its end, if all are completed."""
    count = _pieces_of_stream(job, file)
    if count is None:
        return None
    pieces = [_read_finished(job, file, number, check) for number in range(count)]
    there = [piece for piece in pieces if piece is not None]
    return there if len(there) == count else None


def completed_pieces(job: Job, found: Sequence[Span], check: bool) -> list[Finished]:
    """Every piece of the spans, in the order read. Raises BadInput where some are missing or, on a `check`, damaged."""
    pieces: list[Finished] = []
    missing: list[str] = []
    for span in found:
        file = span.piece.file
        if span.streamed:
            there = _streamed(job, file, check)
        else:
            piece = _read_finished(job, file, span.piece.number, check)
            there = None if piece is None else [piece]
        if there is None:
            missing.append(job.sources[file].path)
        pieces += there or []
    if missing:
        raise BadInput(
            Fault(
                f"{len(missing):,} of {len(found):,} parts of the input",
                f"are not tokenized yet or damaged, the first of {missing[0]}, the last of {missing[-1]}.",
                "Run the same command again; of shards, those of these parts, then merge.",
            )
        )
    return pieces
