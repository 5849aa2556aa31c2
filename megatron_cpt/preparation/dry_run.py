"""The first documents of an input, as `prepare` would take them, and nothing written."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_cpt.preparation.contamination import EvaluationSet
from megatron_cpt.preparation.describe_job import described_job
from megatron_cpt.preparation.documents import OUTSIDE, Blank, Filtered, Line, Rejected, read_inputs
from megatron_cpt.preparation.encode_documents import EncodedBatch, TextCounts
from megatron_cpt.preparation.indexed_input import TokenReader
from megatron_cpt.preparation.job import Job, PrepareSettings
from megatron_cpt.preparation.process_piece import batches
from megatron_cpt.preparation.tokenize_pieces import document_encoder
from megatron_cpt.tokenizer.tokenizer import Tokenizer

_EXAMPLES = 3
"""Documents that are shown."""


@dataclass(frozen=True)
class Example:
    """A document and what it becomes."""

    file: str
    line: int
    """Of the file, or row, from 1."""
    text: str
    tokens: npt.NDArray[np.int32]
    """BOS and EOD included."""
    spans: npt.NDArray[np.void]
    """LOSS_SPAN[spans]: the tokens of a conversation that count in the loss. Empty where all do."""


@dataclass(frozen=True)
class DryRun:
    """What became of the first documents."""

    read: int
    """Documents that were read, whatever became of them."""
    documents: int
    """Documents that would be taken, copies and near duplicates among them."""
    tokens: int
    """BOS and EOD counted."""
    loss_tokens: int | None
    """Of these, those that count in the loss. None: all do."""
    bytes: int
    """UTF-8 bytes of their texts."""
    with_id: int
    """Documents with an id, by --id-key."""
    filtered: Counter[str]
    """Documents that are not wanted, by the reason."""
    rejected: list[tuple[str, Rejected]]
    """File, and line of the file with the reason."""
    counts: TextCounts
    examples: list[Example]
    """The first documents."""
    tokenizer: Tokenizer


def dry_run(
    inputs: Sequence[str],
    tokenizer: str | Path | Tokenizer,
    output: str | Path,
    settings: PrepareSettings,
    limit: int,
    evaluation: Sequence[EvaluationSet] = (),
) -> DryRun:
    """Reads and tokenizes the first `limit` documents of the input. Raises BadInput as `prepare` does.

    Copies, near duplicates and overlaps with `evaluation` are not looked for: they take the whole input.
    """
    job, opened = described_job(inputs, tokenizer, Path(output), settings, evaluation)
    encoder = document_encoder(job, opened, opened.encode_flat)
    reader = TokenReader(opened, job.bos, job.eod, with_text=True)
    kinds: Counter[type[Line]] = Counter()
    rejected: list[tuple[str, Rejected]] = []
    examples: list[Example] = []
    filtered: Counter[str] = Counter()
    parts: list[npt.NDArray[np.int64]] = []
    counts = TextCounts()
    for file, lines in groupby(_first_lines(job, reader, limit, kinds), key=itemgetter(0)):
        path = job.sources[file].path
        unreadable: list[Rejected] = []
        for batch in batches((line for _, line in lines), unreadable):
            encoded = encoder.frame(file, batch)
            unreadable += encoded.rejected
            filtered += encoded.left_out
            counts += encoded.counts
            records = encoded.tokenized.records
            spans = encoded.tokenized.spans
            in_loss, named = (spans["end"] - spans["begin"]).sum(), np.count_nonzero(records["id_bytes"])
            parts.append(
                np.array([len(records), records["tokens"].sum(), in_loss, records["bytes"].sum(), named], np.int64)
            )
            if len(examples) < _EXAMPLES:
                examples += _examples(path, encoded)
        rejected += ((path, line) for line in sorted(unreadable, key=lambda line: line.line))
    documents, tokens, in_loss, size, with_id = np.sum(parts, axis=0).tolist() if parts else [0] * 5
    return DryRun(
        read=kinds.total(),
        documents=documents,
        tokens=tokens,
        loss_tokens=in_loss if settings.train_on == "responses" else None,
        bytes=size,
        with_id=with_id,
        filtered=filtered + Counter({OUTSIDE: kinds[Filtered]}),
        rejected=rejected,
        counts=counts,
        examples=examples[:_EXAMPLES],
        tokenizer=opened,
    )


def _first_lines(job: Job, reader: TokenReader, limit: int, kinds: "Counter[type[Line]]") -> Iterator[tuple[int, Line]]:
    """The first lines that are not blank, counted by what they are, with their file and their number in it."""
    numbers: Counter[int] = Counter()
    for file, line in read_inputs(job.inputs, job.settings.keys, reader.documents):
        numbers[file] += 1
        if isinstance(line, Blank):
            continue
        kinds[type(line)] += 1
        yield file, line if isinstance(line, Filtered) else replace(line, line=numbers[file])
        if kinds.total() >= limit:
            return


def _examples(path: str, encoded: EncodedBatch) -> Iterator[Example]:
    tokenized = encoded.tokenized
    ids, spans = (
        np.split(array, np.cumsum(tokenized.records[counted])[:-1])
        for array, counted in ((tokenized.tokens, "tokens"), (tokenized.spans, "spans"))
    )
    # Of no documents there is still one empty split.
    for document, its_ids, its_spans in islice(zip(encoded.documents, ids, spans, strict=False), _EXAMPLES):
        yield Example(path, document.line, document.text, its_ids, its_spans)
