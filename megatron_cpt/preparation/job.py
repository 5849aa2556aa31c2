"""What one call of prepare, or all shards of one, are about, and the folder that holds what is finished of it.

PREFIX.pieces/job.json says what the pieces were made from. A call that finds pieces of the same inputs,
tokenizer and settings goes on with them; what only decides how they are joined (held-out share, copies,
rejected lines, how near a near duplicate is) may change in between.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import orjson

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault
from megatron_cpt.corpus.indexed import dtype_for
from megatron_cpt.corpus.manifest import SourceFile, tool_version
from megatron_cpt.preparation.inputs import STANDARD_INPUT, Input, piece_size
from megatron_cpt.runs.folder import write_json
from megatron_cpt.tokenizer.tokenizer import BosPolicy, Tokenizer


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """What decides the bytes of a dataset, the inputs and the tokenizer aside."""

    text_key: str = "text"
    """Key of the text in a JSON line, or its column in a table."""
    id_key: str | None = None
    """Key or column of the document's id, for PREFIX.ids.jsonl and the lists of what is left out."""
    document_per_line: bool = False
    """Whether each line of a .txt file, rather than the whole file, is a document."""
    eod: str | None = None
    """Token that closes each document. None: the tokenizer's eos_token."""
    append_eod: bool = True
    """Whether EOD closes each document; without it nothing parts documents but the index."""
    bos: BosPolicy = "auto"
    """Whether BOS opens each document: `auto` does what the tokenizer itself does."""
    parse_special: bool = False
    """Whether control tokens written in the text become control tokens."""
    split_sentences: bool = False
    """Whether each sentence is a sequence of its own."""
    language: str = "english"
    """Of the sentences."""
    keep_newlines: bool = False
    """Whether blanks between sentences stay with the one before."""
    order: Literal["shuffled", "as_read"] = "shuffled"
    """Order of the documents in the dataset."""
    seed: int = 1234
    """Seed of the shuffled order."""
    holdout: float = 0.0
    """Share of documents, 0 to 1, that go to PREFIX.validation."""
    holdout_tokens: int | None = None
    """Instead of a share: at least so many tokens go to PREFIX.validation."""
    keep_duplicates: bool = False
    """Whether exact copies of earlier documents stay."""
    near_duplicates: float | None = None
    """Documents of which at least this share, 0 to 1, of the runs of 5 words is in another that stays are left out
    (text_signatures.py). None: not looked for."""
    decontaminate: str | None = None
    """Hash of the evaluation items that documents are compared with (contamination.py). None: with none."""
    contaminated: Literal["remove", "count"] = "remove"
    """What becomes of documents that overlap evaluation items."""
    max_rejected: float = 0.01
    """Share of documents, 0 to 1, that may be rejected before the whole call fails."""

    @property
    def holds_out(self) -> bool:
        """Whether there is to be a PREFIX.validation."""
        return self.holdout > 0 or self.holdout_tokens is not None

    @property
    def looks_at_text(self) -> bool:
        """Whether texts are compared with others, beside being tokenized."""
        return self.near_duplicates is not None or self.decontaminate is not None


_JOINING = ("holdout", "holdout_tokens", "keep_duplicates", "contaminated", "max_rejected")
"""Settings that decide nothing about the pieces."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What goes in and what is fixed by it."""

    output: Path
    """PREFIX."""
    settings: PrepareSettings
    inputs: list[Input]
    sources: list[SourceFile]
    """The inputs as they were when the call began."""
    piece_size: int
    """Bytes of text of a piece (inputs.py)."""
    tokenizer: str
    """Tokenizer identity."""
    tokenizer_folder: str
    vocabulary_size: int
    """One more than the largest id."""
    bos: int | None
    """Opens each document."""
    eod: int | None
    """Closes each document."""
    version: str = field(default_factory=tool_version)
    """Of this package."""

    @staticmethod
    def describe(output: Path, settings: PrepareSettings, inputs: Sequence[Input], tokenizer: Tokenizer) -> "Job":
        """A job over files as they are now. Raises BadInput where the tokenizer lacks a token that is asked for."""
        return Job(
            output=output,
            settings=settings,
            inputs=list(inputs),
            sources=[_source(source.path) for source in inputs],
            piece_size=piece_size(inputs),
            tokenizer=tokenizer.identity,
            tokenizer_folder=str(tokenizer.folder.resolve()),
            vocabulary_size=tokenizer.vocabulary_size,
            bos=tokenizer.bos_for(settings.bos),
            eod=tokenizer.eod if settings.append_eod else None,
        )

    @property
    def workspace(self) -> Path:
        """Folder of the finished pieces; it goes when the dataset is there."""
        return workspace_of(self.output)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the ids on disk."""
        return dtype_for(self.vocabulary_size)

    @property
    def parts(self) -> list[Path]:
        """The prefixes to be written, the one that declares all of them whole last."""
        return [*([validation_prefix(self.output)] if self.settings.holds_out else []), self.output]

    @property
    def reads_standard_input(self) -> bool:
        """Whether one of the inputs is the stream, of which nothing can be known before it is read."""
        return any(source.path == STANDARD_INPUT for source in self.inputs)

    def makes_same_pieces(self, other: Self) -> bool:
        """Whether pieces of the other job are pieces of this one."""
        return self._fixed() == other._fixed()

    def _fixed(self) -> dict[str, Any]:
        content = _content(self)
        for name in _JOINING:
            del content["settings"][name]
        # Signatures are in the pieces or not; how alike is decided when they are joined.
        content["settings"]["near_duplicates"] = self.settings.near_duplicates is not None
        return content

    def difference(self, other: Self) -> str:
        """What differs between two jobs, for people."""
        ours, theirs = _flat(self), _flat(other)
        return ", ".join(name for name in ours if ours[name] != theirs[name])

    def save(self) -> None:
        """Says what the pieces of the workspace are."""
        write_json(self.workspace / "job.json", _content(self))

    @property
    def replacing(self) -> Path:
        """Is there once the datasets are being written: from then on what stands under their names is this job's."""
        return self.workspace / "replacing"

    @property
    def evaluation(self) -> Path:
        """Names of the evaluation items that the pieces were compared with, for whoever joins them."""
        return self.workspace / "evaluation.json"


def _content(job: Job) -> dict[str, Any]:
    content = asdict(job)
    del content["output"]
    for source in content["inputs"]:
        source["path"] = str(source["path"])
    return content


def _flat(job: Job) -> dict[str, Any]:
    content = _content(job)
    return content.pop("settings") | content


def load_job(output: Path) -> Job | None:
    """The job whose pieces are in the workspace; None where there is none or it cannot be read."""
    try:
        content = orjson.loads((workspace_of(output) / "job.json").read_bytes())
        content["settings"] = PrepareSettings(**content["settings"])
        content["inputs"] = [Input(**(source | {"path": Path(source["path"])})) for source in content["inputs"]]
        content["sources"] = [SourceFile(**source) for source in content["sources"]]
        return Job(output=output, **content)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def begin(job: Job, shared: bool) -> None:
    """Makes the workspace this job's and keeps what is finished of it.

    Raises BadInput where the workspace is `shared` with other shards and they are about something else.
    """
    there = load_job(job.output)
    if there is not None and shared and job != there:
        raise BadInput(
            Fault(
                str(job.workspace),
                f"holds shards of another call (other {job.difference(there)}).",
                "Give every shard the same words, or another --output; remove the folder if it is not needed.",
            )
        )
    if there is None or not job.makes_same_pieces(there):
        shutil.rmtree(job.workspace, ignore_errors=there is None)
    job.workspace.mkdir(parents=True, exist_ok=True)
    if there != job:
        job.save()


def unchanged(job: Job) -> None:
    """Raises IntegrityFault where an input is no longer as it was when the job was described."""
    for source, described in zip(job.inputs, job.sources, strict=True):
        if source.path != STANDARD_INPUT and (not source.path.is_file() or _source(source.path) != described):
            raise IntegrityFault(f"{source.path}: was changed while it was being read. Prepare it again.")


def _source(path: Path) -> SourceFile:
    if path == STANDARD_INPUT:
        return SourceFile("-", 0, 0)
    state = path.stat()
    return SourceFile(str(path.resolve()), state.st_size, state.st_mtime_ns)


def workspace_of(output: Path) -> Path:
    """Where the pieces of a dataset are until it is whole."""
    return output.with_name(f"{output.name}.pieces")


def validation_prefix(output: Path) -> Path:
    """Where held-out documents go."""
    return output.with_name(f"{output.name}.validation")


def rejected_path(output: Path) -> Path:
    """Where rejected lines are listed."""
    return output.with_name(f"{output.name}.rejected.jsonl")


def duplicates_path(output: Path) -> Path:
    """Where exact copies that were left out are listed, with what they repeat."""
    return output.with_name(f"{output.name}.duplicates.jsonl")


def near_duplicates_path(output: Path) -> Path:
    """Where near duplicates that were left out are listed, with what they are like."""
    return output.with_name(f"{output.name}.near_duplicates.jsonl")


def contaminated_path(output: Path) -> Path:
    """Where documents that overlap evaluation items are listed, with the items."""
    return output.with_name(f"{output.name}.contaminated.jsonl")


def ids_path(output: Path) -> Path:
    """Where the ids of a dataset's documents are listed, a JSON string a line, in its order."""
    return output.with_name(f"{output.name}.ids.jsonl")
