"""Warnings of Megatron-Core and torch: each goes to the run's log once, and one that speaks of damage is an error."""

import logging
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from megatron_cpt.config.errors import IntegrityFault

_LIBRARIES = ("megatron", "torch")
"""Packages whose warnings are taken."""
LOGGERS = (*_LIBRARIES, "torch.distributed")
"""Their loggers; torch's does not hand on what the third hears."""
_OF_DAMAGE = re.compile(r"corrupt|padded with zeros|mismatch", re.IGNORECASE)
PRINT_WARNING = warnings.showwarning
HARMLESS = re.compile(
    "Overwriting old incomplete / corrupted checkpoint"  # a save that was cut short: replaced whole
    "|hurt the communication-computation overlap performance"  # a mismatch of order costs time alone
    "|common state dict differs from rank 0"  # pipeline stages number their parameters each in their own way
)


class _LibraryWarnings(logging.Handler):
    """Hands each warning on once."""

    def __init__(self, write: Callable[[str], None], is_first: Callable[[str], bool]) -> None:
        super().__init__(logging.WARNING)
        self._write, self._is_first = write, is_first
        self._seen: set[str] = set()
        self._process = os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        """Takes what a library's logger says."""
        self._take(record.name, record.getMessage())

    def shown(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Takes what `warnings` would print, if it is a library's."""
        package = next((name for name in _LIBRARIES if name in Path(filename).parts), None)
        if package is None:
            PRINT_WARNING(message, category, filename, lineno, file, line)
        else:
            self._take(package, f"{category.__name__}: {message}")

    def _take(self, name: str, text: str) -> None:
        line = f"{name} warns: {' '.join(text.split())}"
        if _OF_DAMAGE.search(text) and not HARMLESS.search(text):
            raise IntegrityFault(line)
        # A process that this one forked, a checkpoint writer, must not talk over its connection to the other ranks.
        if line not in self._seen and os.getpid() == self._process:
            self._seen.add(line)
            if self._is_first(line):
                self._write(line)


def take_warnings(write: Callable[[str], None], is_first: Callable[[str], bool] = lambda line: True) -> None:
    """Takes the libraries' warnings of this process from here on, in place of an earlier taker.

    Args:
        write: takes one line.
        is_first: whether no other rank has handed the same line on. Asked once a line.
    Raises:
        IntegrityFault: later, where a warning speaks of damage, in the call that warns.
    """
    taker = _LibraryWarnings(write, is_first)
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers[:] = [*(other for other in logger.handlers if not isinstance(other, _LibraryWarnings)), taker]
    logging.getLogger("megatron").propagate = False
    warnings.showwarning = taker.shown
