"""What one call of prepare, or all shards of one, are about, and the folder that holds what is finished of it.

PREFIX.pieces/job.json says what the pieces were made from. A call that finds pieces of the same inputs,
tokenizer and settings goes on with them; what only decides how they are joined (held-out share, copies,
rejected lines, how near a near duplicate is) may change in between.

The folder has one owner at a time: PREFIX.pieces/lock is held by a call, or shared by shards. Every file in it is named
by a hash of what the pieces are made from, so that those of two jobs are never mixed, also where there are no locks.
Whatever describes pieces carries a checksum over its content and its own name.
"""

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import orjson

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault
from megatron_cpt.corpus.indexed import dtype_for
from megatron_cpt.corpus.manifest import Manifest, SourceFile, sources_digest, tool_version
from megatron_cpt.corpus.parts import HELD_OUT, part_prefixes
from megatron_cpt.preparation.documents import Keys
from megatron_cpt.preparation.fields import parse_condition
from megatron_cpt.preparation.input_kinds import STANDARD_INPUT, Input
from megatron_cpt.preparation.pieces import piece_size
from megatron_cpt.preparation.remote_file import RemoteFile, is_remote
from megatron_cpt.runs.folder import durable_file, held, renamed_file
from megatron_cpt.tokenizer.tokenizer import BosPolicy, Tokenizer


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """What decides the bytes of a dataset, the inputs and the tokenizer aside."""

    text_key: str = "text"
    """Key of the text in a JSON line, or its column in a table; nested keys are parted by points (fields.py)."""
    id_key: str | None = None
    """Key or column of the document's id, for PREFIX.ids.jsonl and the lists of what is left out."""
    where: str | None = None
    """Condition on fields that documents must meet (fields.py). None: all are taken."""
    document_per_line: bool = False
    """Whether each line of a .txt file, rather than the whole file, is a document."""
    train_on: Literal["responses", "all"] | None = None
    """Documents are conversations (conversations.py): what counts in the loss, the assistant's tokens or all. None:
    documents are texts."""
    chat_template: str | None = None
    """Hash of the template that conversations are written by (chat_template.py); None for texts."""
    filters: list[str] | None = None
    """Rules by which texts are left out (text_filters.py), in their order. None: by none."""
    filter_libraries: str | None = None
    """What decides by these rules, with versions, which `prepare` fills in."""
    min_length: int | None = None
    """Tokens, BOS and EOD counted, that a document has at least; shorter ones are left out. None: any number."""
    max_length: int | None = None
    """Tokens, BOS and EOD counted, that a document has at most; longer texts are cut into parts
    (encode_documents.py), longer conversations are rejected. None: any number."""
    truncate: bool = False
    """Whether longer ones are cut behind the last answer with which they fit."""
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
    dedup_against: dict[str, str] | None = None
    """Prefixes of datasets whose documents are left out, each with the SHA-256 of its documents.npy, which `prepare`
    fills in. None: there are none."""
    near_duplicates: float | None = None
    """Documents of which at least this share, 0 to 1, of the runs of 5 words is in another that stays are left out
    (text_signatures.py). None: not looked for."""
    decontaminate: str | None = None
    """Hash of the evaluation items that documents are compared with (contamination.py). None: with none."""
    contaminated: Literal["remove", "count"] = "remove"
    """What becomes of documents that overlap evaluation items."""
    max_rejected: float = 0.01
    """Share of documents, 0 to 1, that may be rejected before the whole call fails."""
    parts: int = 1
    """Datasets that the order is divided into, by ranges (corpus/parts.py)."""

    @property
    def holds_out(self) -> bool:
        """Whether there is to be a PREFIX.validation."""
        return self.holdout > 0 or self.holdout_tokens is not None

    @property
    def keys(self) -> Keys:
        """Where text and id stand, and what documents must meet. BadInput: `where` is no condition."""
        where = None if self.where is None else parse_condition(self.where)
        return Keys(self.text_key, self.id_key, where, self.train_on is not None)

    @property
    def chooses(self) -> bool:
        """Whether documents may be left out that are not wanted, with nothing wrong in them."""
        return self.where is not None or self.filters is not None or self.min_length is not None

    @property
    def cuts(self) -> bool:
        """Whether texts may be cut into parts."""
        return self.max_length is not None and self.train_on is None

    @property
    def drops_copies(self) -> bool:
        """Whether exact copies, of documents before them or of other datasets, are left out."""
        return not self.keep_duplicates or self.dedup_against is not None

    @property
    def looks_at_text(self) -> bool:
        """Whether texts are compared with others, beside being tokenized."""
        return self.near_duplicates is not None or self.decontaminate is not None


_JOINING = ("holdout", "holdout_tokens", "keep_duplicates", "dedup_against", "contaminated", "max_rejected", "parts")
"""Settings that decide nothing about the pieces."""
_NOTHING_OF_PIECES = ("tokenizer_folder", "not_read")
"""Of a job, beside settings: the same tokenizer may be in another folder on another machine."""


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
    """Bytes of text of a piece (pieces.py)."""
    tokenizer: str
    """Tokenizer identity."""
    tokenizer_folder: str
    vocabulary_size: int
    """One more than the largest id."""
    bos: int | None
    """Opens each document. None: nothing does, or what the chat template writes."""
    eod: int | None
    """Closes each document."""
    not_read: list[str] = field(default_factory=list)
    """Files of the folders that are none of a corpus."""
    version: str = field(default_factory=tool_version)
    """Of this package."""

    @staticmethod
    def describe(
        output: Path,
        settings: PrepareSettings,
        inputs: Sequence[Input],
        tokenizer: Tokenizer,
        not_read: Sequence[Path | RemoteFile] = (),
    ) -> "Job":
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
            bos=tokenizer.bos_for(settings.bos) if settings.train_on is None else None,
            eod=tokenizer.eod if settings.append_eod else None,
            not_read=[str(path.absolute()) for path in not_read],
        )

    @property
    def workspace(self) -> Path:
        """Folder of the finished pieces; it goes when the dataset is there."""
        return workspace_of(self.output)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the ids on disk."""
        return dtype_for(self.vocabulary_size)

    @cached_property
    def datasets(self) -> list[Path]:
        """The prefixes of the training documents, one for each part; beside each, its held-out ones."""
        return part_prefixes(self.output, self.settings.parts)

    @cached_property
    def sources_sha256(self) -> str:
        """Of the list of inputs, as manifests have it."""
        return sources_digest(self.sources)

    @property
    def datasets_read(self) -> list[Input]:
        """The inputs that are datasets: tokens, and no text."""
        return [source for source in self.inputs if source.kind == "indexed"]

    @property
    def reads_standard_input(self) -> bool:
        """Whether one of the inputs is the stream, of which nothing can be known before it is read."""
        return any(source.path == STANDARD_INPUT for source in self.inputs)

    @cached_property
    def digest(self) -> str:
        """Of what the pieces are made from: equal for jobs whose pieces are the same."""
        content = _content(self)
        for name in _JOINING:
            del content["settings"][name]
        # Signatures are in the pieces or not; how alike is decided when they are joined.
        content["settings"]["near_duplicates"] = self.settings.near_duplicates is not None
        for name in _NOTHING_OF_PIECES:
            del content[name]
        return sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]

    def path(self, name: str) -> Path:
        """A file of this job in the workspace."""
        return self.workspace / f"{self.digest}-{name}"

    def difference(self, other: Self) -> str:
        """What differs between two jobs, for people."""
        ours, theirs = _flat(self), _flat(other)
        for name in _NOTHING_OF_PIECES:
            del ours[name]
        return ", ".join(name for name in ours if ours[name] != theirs[name])

    def save(self) -> None:
        """Says what the pieces of the workspace are."""
        note(self.workspace / _JOB, _content(self), durable=True)

    @property
    def is_replacing(self) -> bool:
        """Whether a call of this very job that did not come to its end has begun to put its datasets in place."""
        return noted(self._replacing) is not None

    def note_replacing(self) -> None:
        """Says that the datasets are put in place from now on, and what is older goes (`unfinished_settings`)."""
        if not self.is_replacing:
            note(self._replacing, asdict(self.settings), durable=True)

    @property
    def _replacing(self) -> Path:
        settings = orjson.dumps(asdict(self.settings), option=orjson.OPT_SORT_KEYS)
        return self.path(f"{sha256(settings).hexdigest()[:16]}{_REPLACING}")

    @property
    def evaluation(self) -> Path:
        """Names of the evaluation items that the pieces were compared with, for whoever joins them."""
        return self.path("evaluation.json")


def _content(job: Job) -> dict[str, Any]:
    content = asdict(job)
    del content["output"]
    # Where inputs are stands with their sizes, and does not depend on the folder of the call.
    for source in content["inputs"]:
        del source["path"]
    return content


def _flat(job: Job) -> dict[str, Any]:
    content = _content(job)
    return content.pop("settings") | content


def note(path: Path, content: Any, durable: bool = False) -> None:
    """Writes JSON with a checksum over content and name, for `noted`."""
    with (durable_file if durable else renamed_file)(path) as file:
        file.write(orjson.dumps({"sha256": _checksum(path, content), "content": content}))


def noted(path: Path) -> Any:
    """What was noted; None where there is nothing, or something else than what was written."""
    try:
        value = orjson.loads(path.read_bytes())
        return value["content"] if value["sha256"] == _checksum(path, value["content"]) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _checksum(path: Path, content: Any) -> str:
    return sha256(path.name.encode() + orjson.dumps(content)).hexdigest()


_JOB, _LOCK, _BEGINNING, _REPLACING = "job.json", "lock", "beginning", ".replacing.json"
_OF_WORKSPACE = re.compile(
    r"lock|beginning|job\.json|\.nfs\w+|[0-9a-f]{16}-.+|unpacked-\w+|tmp\w+|\..+\.partial-.+"
    r"|evaluation\.json|replacing|left_out|pairs|\d{6}.*\.(run|found|json|input)"  # as version 0.1 named them
)
"""Names of what a workspace holds."""


@contextmanager
def owned(output: Path, shared: bool = False) -> Iterator[None]:
    """Holds the workspace of a dataset during the block, alone or `shared` by shards.

    Raises BadInput where another call holds it, or a folder of that name holds files that are none of a workspace.
    """
    workspace = workspace_of(output)

    def taken(holder: str) -> Fault:
        return Fault(str(output), f"is being prepared by {holder}.", "Wait for it, end it, or give another --output.")

    workspace.mkdir(parents=True, exist_ok=True)
    strangers = [path.name for path in workspace.iterdir() if not _OF_WORKSPACE.fullmatch(path.name)]
    if strangers:
        rule = f"is where pieces would be kept, and holds files of something else, such as {min(strangers)}."
        raise BadInput(Fault(str(workspace), rule, "Move that folder, or give another --output."))
    with held(workspace / _LOCK, taken, shared):
        try:
            yield
        finally:
            if not shared and {path.name for path in workspace.iterdir()} <= {_LOCK, _BEGINNING}:
                for name in (_BEGINNING, _LOCK):
                    (workspace / name).unlink(missing_ok=True)
                with suppress(OSError):  # another call has come in between
                    workspace.rmdir()


def clear(output: Path, keep: Job | None = None) -> None:
    """Removes what the workspace holds, but for its lock and the pieces of the job that is to go on in it."""
    for path in workspace_of(output).iterdir():
        # What NFS keeps of files that are open and have no name goes with their process.
        if (
            path.name in (_LOCK, _BEGINNING)
            or path.name.startswith(".nfs")
            or (keep is not None and path.name.startswith(f"{keep.digest}-"))
        ):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def forget(job: Job) -> None:
    """Removes what a call that was killed at its very end left of this job. Pieces of other jobs stay."""
    if not job.workspace.is_dir():
        return
    with suppress(BadInput), owned(job.output):  # whoever holds it removes it
        for path in job.workspace.glob(f"{job.digest}-*"):
            path.unlink()
        if {path.name for path in job.workspace.iterdir()} <= {_LOCK, _BEGINNING, _JOB}:
            (job.workspace / _JOB).unlink(missing_ok=True)


def load_job(output: Path) -> Job | None:
    """The job whose pieces are in the workspace; None where there is none. IntegrityFault: it cannot be read."""
    path = workspace_of(output) / _JOB
    if not path.exists():
        return None
    content = noted(path)
    try:
        content["settings"] = PrepareSettings(**content["settings"])
        content["sources"] = [SourceFile(**source) for source in content["sources"]]
        paths = (
            RemoteFile(source.path, source.size, source.modified_ns) if is_remote(source.path) else Path(source.path)
            for source in content["sources"]
        )
        content["inputs"] = [Input(path, **source) for path, source in zip(paths, content["inputs"], strict=True)]
        return Job(output=output, **content)
    except (TypeError, KeyError) as error:
        rule = "is not what was written, or of another version. Run one of the shards again: it writes it anew."
        raise IntegrityFault(f"{path}: {rule}") from error


def begin(job: Job, shared: bool) -> None:
    """Makes the workspace, which the caller owns, this job's and keeps what is finished of it.

    Raises BadInput where the workspace is `shared` with other shards and they are about something else.
    """

    def taken(holder: str) -> Fault:
        return Fault(str(job.output), f"is being begun by {holder}.", "Wait for it.")

    # Shards begin at once: without it, two calls would both find that nobody has begun.
    with held(job.workspace / _BEGINNING, taken, wait=True):
        _begin(job, shared)


def _begin(job: Job, shared: bool) -> None:
    try:
        there = load_job(job.output)
    except IntegrityFault:
        there = None
    difference = job.difference(there) if there is not None else ""
    if shared and difference:
        raise BadInput(
            Fault(
                str(job.workspace),
                f"holds shards of another call (other {difference}).",
                "Give every shard the same words, or another --output; remove the folder if it is not needed.",
            )
        )
    if not shared:
        clear(job.output, keep=job)
    if there is None or difference or not shared:
        job.save()


def unfinished_settings(output: Path) -> list[PrepareSettings]:
    """Of the calls that were ended while they put their datasets in place, of this job or another."""
    found = [noted(path) for path in workspace_of(output).glob(f"*{_REPLACING}")]
    known = {field.name for field in fields(PrepareSettings)}
    return [
        PrepareSettings(**{name: value for name, value in settings.items() if name in known})
        for settings in found
        if settings is not None
    ]


@contextmanager
def one_division(job: Job) -> Iterator[None]:
    """Holds during the block that a dataset is joined in so many parts as this job's, with others that join them too.

    Raises BadInput where a process joins it in another number of parts.
    """

    def lock(parts: int) -> Path:
        return job.path(f"{_IN_PARTS}{parts}")

    def elsewhere(parts: int, holder: str) -> Fault:
        rule = f"is not the {parts:,} parts in which {holder} is joining {job.output}."
        return Fault(
            f"--parts {job.settings.parts}", rule, "Wait for it, or end it, and give all tasks the same --parts."
        )

    own = lock(job.settings.parts)
    with ExitStack() as stack:
        with held(job.path("dividing"), partial(elsewhere, job.settings.parts), wait=True):
            for other in job.workspace.glob(f"{job.digest}-{_IN_PARTS}*"):
                if other != own:
                    with held(other, partial(elsewhere, int(other.name.rpartition("-")[2]))):
                        other.unlink()
            stack.enter_context(held(own, partial(elsewhere, job.settings.parts), shared=True))
        yield


_IN_PARTS = "in-parts-"
"""Beginning of the names of locks, behind which the number of parts stands: each is held by those that join these."""


def unchanged(job: Job) -> None:
    """Raises IntegrityFault where an input is no longer as it was when the job was described."""
    for source, described in zip(job.inputs, job.sources, strict=True):
        path = source.path.now() if isinstance(source.path, RemoteFile) else source.path
        if path != STANDARD_INPUT and (path is None or not path.is_file() or _source(path) != described):
            raise IntegrityFault(f"{source.path}: was changed while it was being read. Prepare it again.")


def _source(path: Path | RemoteFile) -> SourceFile:
    if path == STANDARD_INPUT:
        return SourceFile("-", 0, 0)
    state = path.stat()
    return SourceFile(str(path.resolve()), state.st_size, state.st_mtime_ns)


def workspace_of(output: Path) -> Path:
    """Where the pieces of a dataset are until it is whole."""
    return output.with_name(f"{output.name}.pieces")


def validation_prefix(output: Path) -> Path:
    """Where held-out documents go."""
    return output.with_name(f"{output.name}{HELD_OUT}")


def is_held_out(manifest: Manifest) -> bool:
    """Whether a dataset is the held-out part of another; of earlier versions, whether it may be."""
    return holds_out(manifest) if manifest.held_out is None else manifest.held_out


def holds_out(manifest: Manifest) -> bool:
    """Whether the call that wrote a dataset held documents out."""
    settings = manifest.settings or {}
    return bool(settings.get("holdout") or settings.get("holdout_tokens"))


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
