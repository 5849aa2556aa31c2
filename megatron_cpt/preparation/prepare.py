"""Documents to a dataset.

1. The inputs are found (inputs.py) and cut into pieces (pieces.py).
2. A worker takes a piece (tokenize_pieces.py): it reads the documents and rejects broken lines with a reason
   (documents.py), tokenizes them, adds BOS and EOD, hashes them, and leaves the finished piece, sorted, in
   PREFIX.pieces (process_piece.py). A killed run resumes with the pieces that are not finished.
3. What becomes of each document is decided once: copies and rejected lines are listed, documents are held out
   (decisions.py). Then the pieces are joined (join.py): everything is written in its order to PREFIX and
   PREFIX.validation, or to those of each part. Shards do step 2 for some of the pieces; `merge` is step 3.

Memory holds one piece per worker, later one range of the order. The bytes are the same for any number of workers and
shards. What stood under PREFIX stays whole until the end of step 3.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.corpus.manifest import Manifest
from megatron_cpt.preparation.contamination import EvaluationSet
from megatron_cpt.preparation.decisions import Decisions, decided
from megatron_cpt.preparation.describe_job import described_job
from megatron_cpt.preparation.existing import (
    are_joined,
    files_of,
    finished,
    refuse_others_files,
    refuse_to_replace,
    sweep_files,
    sweep_other_divisions,
    whole_part,
    whole_result,
)
from megatron_cpt.preparation.input_kinds import STANDARD_INPUT
from megatron_cpt.preparation.job import (
    Job,
    PrepareSettings,
    begin,
    clear,
    forget,
    load_job,
    one_division,
    owned,
    workspace_of,
)
from megatron_cpt.preparation.join import Joined, join
from megatron_cpt.preparation.pieces import of_shard, spans
from megatron_cpt.preparation.pool import PATIENCE_SECONDS, Workers
from megatron_cpt.preparation.process_piece import Finished, completed_pieces, note_shards
from megatron_cpt.preparation.sorted_runs import SortedRun
from megatron_cpt.preparation.tokenize_pieces import share_of_memory, tokenize
from megatron_cpt.runs.folder import only_writer
from megatron_cpt.tokenizer.tokenizer import Tokenizer


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
        tokenize(job, opened, evaluation, found, workers, progress, fast, patience)
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
    refuse_others_files(job, job.datasets)
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
        note_shards(job, shard.of)
        found = of_shard(spans(job.inputs, job.piece_size, job.settings.text_key), shard.number, shard.of)
        tokenize(job, opened, evaluation, found, workers, progress, fast, patience)
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
            refuse_others_files(job, job.datasets)
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
    with one_division(job), only_writer(prefix, files_of(prefix), wait=True):
        sweep_other_divisions(job)
        refuse_others_files(job, [prefix])
        pieces = _pieces(job, check=False)
        decisions = decided(job, pieces, check=True)
        there = whole_part(job, decisions, part)
        if there is not None:
            return there
        if not overwrite:
            refuse_to_replace(job, [prefix])
        return join(job, pieces, [piece.run(job) for piece in pieces], decisions, part)


def _pieces(job: Job, check: bool) -> list[Finished]:
    return completed_pieces(job, spans(job.inputs, job.piece_size, job.settings.text_key), check)


def _join(job: Job, workers: int | None, patience: float, check: bool) -> Prepared:
    """Joins all parts, several at a time, each by a process of its own."""
    pieces = _pieces(job, check)
    decisions = decided(job, pieces, check=False)
    runs = [piece.run(job) for piece in pieces]
    of = job.settings.parts
    if of == 1:
        joined = {1: join(job, pieces, runs, decisions, 1)}
    else:
        there = {number: whole_part(job, decisions, number) for number in range(1, of + 1)}
        joined = {number: part for number, part in there.items() if part is not None}
        count = min(workers or os.cpu_count() or 1, of - len(joined))
        work = partial(_join_part, job, pieces, runs, decisions)
        with Workers(count, work, share_of_memory(count), patience) as pool:
            joined |= pool.map((number for number in there if number not in joined), lambda: None)
    clear(job.output)
    return Prepared(tuple(joined[number] for number in sorted(joined)), reused=False)


def _join_part(
    job: Job, pieces: Sequence[Finished], runs: Sequence[SortedRun], decisions: Decisions, worker: int, number: int
) -> Joined:
    return join(job, pieces, runs, decisions, number)
