"""How a run stands and how a program ended: exit codes are an API.

torchrun returns 1 whatever its ranks return, so the code also stands in RUN/status.json, from which
`megatron-cpt train` returns it.
"""

import errno
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path

import orjson

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault, NumericsFault, StorageFault
from megatron_cpt.runs.durable import FULL, write_json


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


NO_TEXT = "surrogates not allowed"
"""Of what Python and orjson say where a text is none, such as a file name of other bytes than UTF-8."""
IN_EXTRAS = {"rensa": "quality", "sklearn": "quality", "lm_eval": "eval", "wandb": "watch", "gigatoken": "fast"}
"""Optional libraries by the extra of this package that installs them."""


CLOSED = (
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
            f"{where}: cannot be written: {error.strerror}. Free room for it, then run the command again."
        )
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        where = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        if error.errno not in CLOSED:  # It was there, or is of a file system that fails: nothing that was given wrong.
            return StorageFault(f"{where}: {error.strerror}.")
        return BadInput(Fault(where, f"cannot be used: {error.strerror}.", "Give a place that is there and allows it."))
    if isinstance(error, UnicodeEncodeError) or (isinstance(error, TypeError) and NO_TEXT in str(error)):
        where = repr(error.object) if isinstance(error, UnicodeEncodeError) else "a name or a text"
        rule = "holds bytes that are no UTF-8 text, and what is written about it would not be readable."
        return BadInput(Fault(where, rule, "Rename the file or folder, or mend the text."))
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("megatron_cpt"):
        library = error.name.partition(".")[0]
        source = f"'megatron-cpt[{IN_EXTRAS[library]}]'" if library in IN_EXTRAS else library
        return BadInput(Fault(f"the library {library}", f"is needed: {error}.", f"Install it: pip install {source}."))
    return error


@dataclass(frozen=True)
class Status:
    """The content of status.json."""

    state: str
    """running, done, preempted or failed."""
    exit_code: int | None = None
    """None while the run goes on."""
    message: str | None = None
    """What went wrong or why it was stopped, in the words that the user saw."""
    step: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    """Tokens trained."""


def write_status(path: Path, status: Status) -> None:
    """Replaces status.json. On a full disk it is written over, which needs no room."""
    try:
        write_json(path, asdict(status))
    except OSError as error:
        if error.errno not in FULL or not path.exists():
            raise
        content = orjson.dumps(asdict(status))
        with path.open("r+b") as file:
            file.write(content.ljust(path.stat().st_size))


def read_status(path: Path) -> Status | None:
    """The status, or None where there is no readable one."""
    try:
        return Status(**orjson.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
