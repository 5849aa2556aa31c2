"""The run folder: names of its files, files that are whole or absent, the lock, the status.

A file gets its name only when all its bytes are on disk (temporary name, fsync, rename). A kill at any moment leaves
the old file or the new one. One job at a time trains in a folder: two would overwrite each other's checkpoints.

Exit codes are an API. torchrun returns 1 whatever its ranks return, so the code also stands in RUN/status.json, and
`megatron-cpt train` returns it from there.
"""

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault, NumericsFault, StorageFault, refuse
from megatron_cpt.runs.permissions import no_link, owner_faults
from megatron_cpt.runs.processes import this_process


class RunFolder:
    """Names and places of the files of a run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def config(self) -> Path:
        """The resolved configuration of the last start, from which alone the run can be repeated."""
        return self.path / "config.yaml"

    def config_from(self, step: int) -> Path:
        """The configuration with which the run went on after a step."""
        return self.path / f"config.step-{step:08}.yaml"

    def configs(self) -> dict[int, Path]:
        """Those of all starts that changed something, by the steps done before, in their order."""
        paths = sorted(self.path.glob("config.step-*.yaml"))
        numbers = [(path.name.removeprefix("config.step-").removesuffix(".yaml"), path) for path in paths]
        return {int(number): path for number, path in numbers if number.isdigit()}

    @property
    def plan(self) -> Path:
        """What the run set out to do: blend, steps, evaluations."""
        return self.path / "plan.json"

    @property
    def versions(self) -> Path:
        """Software and machine."""
        return self.path / "versions.json"

    @property
    def lineage(self) -> Path:
        """The parent of the model and the learning-rate history, for the loss laws."""
        return self.path / "lineage.json"

    @property
    def initial_loss_check(self) -> Path:
        """The loss of the first sequences before the first update, beside transformers' own."""
        return self.path / "initial_loss_check.json"

    @property
    def records(self) -> Path:
        """One JSON object a line (records.py)."""
        return self.path / "records.jsonl"

    @property
    def status(self) -> Path:
        """How the run stands or ended (folder.py)."""
        return self.path / "status.json"

    @property
    def log(self) -> Path:
        """What a person reads (records.py)."""
        return self.path / "log.txt"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard event files."""
        return self.path / "tensorboard"

    @property
    def profile(self) -> Path:
        """Folder of profiler traces."""
        return self.path / "profile"

    @property
    def flight_records(self) -> Path:
        """The last collectives of each rank of a run that hung, for `torchfrtrace`: its rank follows the name."""
        return self.path / "flight_recorder" / "rank_"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints to resume from."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """config.json and tokenizer of a model whose positions differ from those of the folder it starts from."""
        return self.path / "model"

    @property
    def hf(self) -> Path:
        """The exported Hugging Face folder."""
        return self.path / "hf"

    def hf_of_step(self, step: int) -> Path:
        """The Hugging Face folder that was exported after a step on the way."""
        return self.path / "hf_steps" / f"step-{step:08}"

    @property
    def samples(self) -> Path:
        """Text of the model before and after, after the same prompts (samples.py)."""
        return self.path / "samples.json"

    @property
    def report(self) -> Path:
        """The page that `megatron-cpt report` writes."""
        return self.path / "report.html"

    def create(self) -> None:
        """Makes the folder and its folder of checkpoints where they are not there yet.

        Raises:
            BadInput: a file is in the way, the place cannot be written to, or it is another user's.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = f"the run folder cannot be made here: {error.strerror or error}."
            raise BadInput(Fault(str(self.path), reason, "Give another `run.folder`.")) from error
        refuse([*owner_faults([self.path, self.checkpoints])])


@contextmanager
def only_job(folder: Path, launcher: str | None = None) -> Iterator[None]:
    """Holds RUN/lock during the block. Only who holds it writes the status of the run.

    Args:
        launcher: the process that started this one, which may hold it in its place (runs/processes.py).
    Raises:
        BadInput: another job holds it.
    """
    holders: list[str] = []

    def taken(holder: str) -> Fault:
        holders.append(holder)
        rule = f"{holder} is training in this folder."
        return Fault(f"run.folder = {folder}", rule, "Wait for it, end it, or name another.")

    with ExitStack() as stack:
        try:
            stack.enter_context(held(folder / "lock", taken))
        except BadInput:
            if launcher not in holders:
                raise
        yield


@contextmanager
def held(lock: Path, taken: Callable[[str], Fault], shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Holds a lock file during the block, alone or `shared` with those that share it too; on `wait`, once it is free.

    It is the process's, not its children's, and ends with it, however it ends. The holder may remove the file.

    Raises:
        BadInput: another process holds it: the fault that `taken` makes of that process's name.
    """
    while True:
        with open(lock, "a+", opener=no_link) as file:
            try:
                fcntl.lockf(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
            except (BlockingIOError, PermissionError):
                file.seek(0)
                raise BadInput(taken(file.read().strip() or "another job")) from None
            except OSError:  # a file system without locks
                yield
                return
            if not _is_named(file.fileno(), lock):
                continue  # The holder before removed it: whoever comes next would lock another file of this name.
            file.truncate(0)
            file.write(this_process())
            file.flush()
            yield
            return


def _is_named(descriptor: int, path: Path) -> bool:
    """Whether a path still names an open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


class ExitCode(IntEnum):
    """What a program returns."""

    DONE = 0
    OTHER = 1
    BAD_INPUT = 2
    INTEGRITY = 3
    NUMERICS = 4
    PREEMPTED = 75


def exit_code_of(error: BaseException) -> ExitCode:
    """The code that stands for an error."""
    if isinstance(error, BadInput):
        return ExitCode.BAD_INPUT
    if isinstance(error, IntegrityFault):
        return ExitCode.INTEGRITY
    if isinstance(error, NumericsFault):
        return ExitCode.NUMERICS
    return ExitCode.OTHER


_NO_TEXT = "surrogates not allowed"
"""Of what Python and orjson say where a text is none, such as a file name of other bytes than UTF-8."""
_IN_EXTRAS = {
    "rensa": "quality",
    "sklearn": "quality",
    "lm_eval": "eval",
    "wandb": "watch",
    "mlflow": "mlflow",
    "gigatoken": "fast",
    "datatrove": "filters",
    "spacy": "filters",
    "fasttext": "models",
    "kenlm": "models",
}
"""Optional libraries by the extra of this package that installs them."""


_CLOSED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
)
"""What the system says of a place that cannot be what it was given for."""


def explained(error: Exception) -> Exception:
    """What users are to see of an error: value and remedy in place of the system's words.

    Of a file, a full disk, a name that is no text or a library that is not installed; any other error is returned as it
    is.
    """
    if isinstance(error, OSError) and error.errno in FULL:
        where = error.filename or "a file or the standard output"
        return StorageFault(
            f"{where}: cannot be written: {error.strerror}{_room_at(error.filename)}. Free room for it, then run the "
            "command again."
        )
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        where = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        if error.errno not in _CLOSED:  # It was there, or is of a file system that fails: nothing that was given wrong.
            return StorageFault(f"{where}: {error.strerror}.")
        return BadInput(
            Fault(where, f"cannot be used: {error.strerror}.", "Name an existing place that you may write to.")
        )
    if isinstance(error, UnicodeEncodeError) or (isinstance(error, TypeError) and _NO_TEXT in str(error)):
        where = repr(error.object) if isinstance(error, UnicodeEncodeError) else "a name or a text"
        rule = "contains bytes that are not UTF-8 text."
        return BadInput(Fault(where, rule, "Rename the file or folder, or correct the text."))
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("megatron_cpt"):
        library = error.name.partition(".")[0]
        source = f"'megatron-cpt[{_IN_EXTRAS[library]}]'" if library in _IN_EXTRAS else library
        return BadInput(Fault(f"the library {library}", f"is needed: {error}.", f"Install it: pip install {source}."))
    return error


@dataclass(frozen=True)
class Status:
    """The content of status.json."""

    state: str
    """starting, running, done, preempted or failed."""
    exit_code: int | None = None
    """None while the run goes on."""
    message: str | None = None
    """What went wrong or why it was stopped, in the words that the user saw."""
    step: int = 0
    """Optimizer steps that are saved: the next start goes on after them. The log tells how far a run was beyond."""
    tokens: int = 0
    """Tokens of these steps."""


def write_status(path: Path, status: Status) -> None:
    """Replaces status.json. On a full disk it is written over, which needs no room."""
    try:
        write_json(path, asdict(status))
    except OSError as error:
        if error.errno not in FULL or not path.exists():
            raise
        content = orjson.dumps(asdict(status))
        with open(path, "r+b", opener=no_link) as file:
            file.write(content.ljust(path.stat().st_size))


def read_status(path: Path) -> Status | None:
    """The status, or None where there is no readable one."""
    try:
        return Status(**orjson.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def defect(error: BaseException) -> str:
    """The message of an error that nobody expected, with the rank that it hit first."""
    return f"rank {os.environ.get('RANK', '0')}: {type(error).__name__}: {error}".removesuffix(": ")


def is_defect(status: Status) -> bool:
    """Whether a run ended by such an error: where a rank was killed, it may be what that did to another rank."""
    return status.exit_code == ExitCode.OTHER and re.match(r"rank \d+: \w+", status.message or "") is not None


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where there is no room for what is written: on the disk, by a quota, by a limit."""


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Gives an error of writing the name of the file, which the system leaves out."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            error.filename = str(path)
        raise


def _free_bytes(path: Path) -> int:
    """Bytes that may still be written where a path is, or the nearest folder above it that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _room_at(path: str | None) -> str:
    return f"; {_free_bytes(Path(path)):,} bytes are free on its disk" if path and Path(path).parent.is_dir() else ""


def refuse_without_room(result: Path, needed: int) -> None:
    """Raises StorageFault where a result of so many bytes, at least, does not fit on its disk."""
    free = _free_bytes(result.parent)
    if needed > free:
        raise StorageFault(
            f"{result}: needs {needed:,} bytes, and {free:,} are free on its disk. Free room for it, or give another "
            "place."
        )


def refuse_to_replace(paths: Iterable[Path]) -> None:
    """Raises BadInput with every result that is there already."""
    remedy = "Give another name, or remove it."
    refuse([Fault(str(path), "is there already.", remedy) for path in paths if path.exists()])


def refuse_existing(folder: Path) -> None:
    """Raises BadInput where a folder that is to be made is there already. A folder is never written over."""
    if folder.exists():
        raise BadInput(Fault(str(folder), "there is something here already.", "Name another folder, or move this one."))


def unfinished_name(folder: Path) -> Path:
    """What a folder is called while `whole_folder` writes it."""
    return folder.with_name(f".{folder.name}.partial")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """An empty folder of another name, which gets its own when the block ends without an error, and else is removed.

    Raises BadInput where something has the name already, or another process is writing it.
    """
    refuse_existing(folder)
    unfinished = unfinished_name(folder)
    with only_writer(folder):
        refuse_existing(folder)  # another may have finished it meanwhile
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            yield unfinished
            sync_folder(unfinished)
            unfinished.rename(folder)
            sync_folder(folder.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def only_writer(result: Path, files: Iterable[Path] = (), wait: bool = False) -> Iterator[None]:
    """Holds the lock of a result during the block, beside it as `.NAME.lock`, and sweeps what the dead left.

    Two that write under one name would leave files of both.

    Args:
        files: what the result consists of, where it is several files.
        wait: whether another process that holds it is waited for.
    Raises:
        BadInput: another process holds it, and is not waited for.
    """

    def taken(holder: str) -> Fault:
        return Fault(str(result), f"is being written by {holder}.", "Wait for it, end it, or give another name.")

    result.parent.mkdir(parents=True, exist_ok=True)
    lock = lock_of(result)
    with held(lock, taken, wait=wait):
        try:
            sweep(files)
            yield
        finally:
            lock.unlink(missing_ok=True)


def lock_of(result: Path) -> Path:
    """The file that `only_writer` holds; a killed writer leaves it."""
    return result.with_name(f".{result.name}.lock")


def sweep(files: Iterable[Path]) -> None:
    """Removes what killed processes left of files under temporary names. Whoever calls it is their only writer."""
    names: dict[Path, set[str]] = defaultdict(set)
    for file in files:
        names[file.parent].add(file.name)
    for folder, of_folder in names.items():  # each is listed once: a dataset in parts has thousands of files
        for left in folder.glob(".*.partial-*"):
            if left.name.rpartition(".partial-")[0].removeprefix(".") in of_folder:
                left.unlink(missing_ok=True)


@contextmanager
def renamed_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing that appears as `path` only when the block ends without an error.

    Whole after a kill, but not after a loss of power: for what is checked when it is read and can be made again.
    """
    if not path.parent.is_dir():
        raise BadInput(Fault(str(path), f"there is no folder {path.parent}.", "Make it, or give another name."))
    # Process numbers repeat between machines that share a folder, and in containers nearly always.
    temporary = path.with_name(f".{path.name}.partial-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with named_errors(path), temporary.open("wb") as file:
            yield file
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def durable_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing that appears as `path`, on disk, only when the block ends without an error."""
    with renamed_file(path) as file:
        yield file
        with named_errors(path):
            file.flush()
            os.fsync(file.fileno())
    sync_folder(path.parent)


def write_durably(path: Path, content: bytes | str) -> None:
    """Writes the whole content under a final name."""
    with durable_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON with a final newline; numpy scalars and arrays are allowed."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    write_durably(path, orjson.dumps(value, option=options))


_CHECK = "content_sha256"
"""Key of an object of ours: SHA-256 of its other keys and values, as JSON with sorted keys and no blanks."""


def write_checked_json(path: Path, content: dict[str, Any]) -> None:
    """Writes an object that says itself whether it is what was written, for `read_json_object`."""
    write_json(path, content | {_CHECK: _checksum(orjson.loads(_dumped(content)))})


def write_new_json(path: Path, content: dict[str, Any]) -> None:
    """Writes such an object unless there is one already, of which the file system itself is asked.

    A machine may not see yet what another has written.
    """
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        write_checked_json(aside, content)
        os.link(aside, path)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
            raise
        aside.rename(path)  # a file system without links
    finally:
        aside.unlink(missing_ok=True)


def read_json_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is no file. One with a check is proved to be what was written.

    Raises:
        IntegrityFault: the file holds something else.
    """
    if not path.is_file():
        return None
    try:
        content = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise IntegrityFault(f"{path}: not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise IntegrityFault(f"{path}: not an object.")
    return proved(path, content)


def proved(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The object of a file without its check. Raises IntegrityFault where it is not what was written."""
    check = content.pop(_CHECK, None)
    if check is not None and check != _checksum(content):
        raise IntegrityFault(
            f"{path}: is not what was written ({_CHECK} differs). Write or copy it again; where it was changed on "
            f"purpose, take the line {_CHECK} out."
        )
    return content


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(_dumped(content)).hexdigest()


def _dumped(content: dict[str, Any]) -> bytes:
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_SORT_KEYS)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Waits until a file's bytes are on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes renames and removals in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
