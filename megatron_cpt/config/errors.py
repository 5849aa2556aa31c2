"""The errors that users see: each names the value, the rule it breaks and the remedy.

Every expected failure is one of these; the programs turn them into one message and an exit code
(runs/folder.py). Anything else is a defect of ours and keeps its traceback.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with the input of a command."""

    value: str
    """What was found, by the name the user gave it: `training.micro_batch_size = 3`."""
    rule: str
    """What it should be, as a sentence."""
    remedy: str
    """What to do about it, as a sentence."""

    def __str__(self) -> str:
        return f"{self.value}: {self.rule} {self.remedy}"


def printable(text: str) -> str:
    """A text in which nothing steers a terminal: control characters but line ends and tabs are spelled out."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


class BadInput(Exception):
    """What the user gave cannot work. Carries every fault found, so that all are mended in one round."""

    def __init__(self, *faults: Fault) -> None:
        self.faults = faults
        super().__init__("\n".join(f"- {fault}" for fault in faults) if len(faults) > 1 else str(faults[0]))

    def __reduce__(self) -> tuple[type["BadInput"], tuple[Fault, ...]]:
        # It travels from workers; an exception's own way would make it anew from its message.
        return BadInput, self.faults


class IntegrityFault(Exception):
    """Bytes on disk are not what was written: a torn, altered or foreign file."""


class WorkerDied(Exception):
    """A process that worked for this one ended without an answer: killed, or out of memory."""


class NumericsFault(Exception):
    """A loss, a gradient or a weight is not finite."""


class StorageFault(Exception):
    """What had to be written could not be: a full or failing disk, a writing process that was killed."""


class RankFailed(Exception):
    """Rank 0 failed, and says why: this rank has nothing to add."""


class RankGone(RankFailed):
    """Rank 0 is gone without a word, and nothing can be asked of the other ranks any more."""


def refuse(faults: Sequence[Fault]) -> None:
    """Raises BadInput with all the faults, if there are any."""
    if faults:
        raise BadInput(*faults)
