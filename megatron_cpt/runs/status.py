"""How a run stands and how a program ended: exit codes are an API.

torchrun returns 1 whatever its ranks return, so the code also stands in RUN/status.json, from which
`megatron-cpt train` returns it.
"""

from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path

import orjson

from megatron_cpt.config.errors import BadInput, IntegrityFault, NumericsFault
from megatron_cpt.runs.durable import write_json


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
    """Replaces status.json."""
    write_json(path, asdict(status))


def read_status(path: Path) -> Status | None:
    """The status, or None where there is no readable one."""
    try:
        return Status(**orjson.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
