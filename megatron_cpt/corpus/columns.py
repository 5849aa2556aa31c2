"""Columns beside a dataset: PREFIX.NAME.npy, one value per document, memory-mapped.

The array of spans that count in the loss is written and read alike, though a document has any number of them.
"""

from contextlib import ExitStack
from pathlib import Path
from tokenize import TokenError
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault
from megatron_cpt.runs.folder import durable_file

DOCUMENTS = "documents"
"""The column that prepare writes."""
DOCUMENT_RECORD = np.dtype([("content_hash", "<u8"), ("bytes", "<i8")])
"""Of each document: 64-bit hash of its text (sorted_runs.content_hash), UTF-8 bytes of its text."""
LOSS_SPANS = "loss_spans"
"""The array that prepare writes of conversations (loss_mask.py). It is no column: a document has any number of them."""
LOSS_SPAN = np.dtype([("begin", "<i8"), ("end", "<i8")])
"""Tokens [begin, end) that count in the loss."""


def column_path(prefix: str | Path, name: str) -> Path:
    """The file of a column."""
    return Path(f"{prefix}.{name}.npy")


class ColumnWriter:
    """Writes a column of unknown length; it appears when the block ends without an error."""

    def __init__(self, prefix: str | Path, name: str, dtype: npt.DTypeLike) -> None:
        self.path = column_path(prefix, name)
        self.dtype = np.dtype(dtype)
        self.count = 0
        self._open_files = ExitStack()

    def __enter__(self) -> Self:
        self._file = self._open_files.enter_context(durable_file(self.path))
        self._write_header()
        self._start = self._file.tell()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._open_files.__exit__(kind, error, trace)
            return
        with self._open_files:  # An error here, too, leaves no file.
            # numpy pads the header so that its length does not depend on the count.
            self._file.seek(0)
            self._write_header()
            assert self._file.tell() == self._start

    def add(self, values: npt.NDArray[Any]) -> None:
        """Appends dtype[n]."""
        self._file.write(np.ascontiguousarray(values, self.dtype).tobytes())
        self.count += len(values)

    def _write_header(self) -> None:
        description = np.lib.format.dtype_to_descr(self.dtype)
        header = {"descr": description, "fortran_order": False, "shape": (self.count,)}
        np.lib.format.write_array_header_1_0(self._file, header)


def read_column(prefix: str | Path, name: str, documents: int) -> npt.NDArray[Any]:
    """A column of a dataset of so many documents, mapped from disk.

    Raises BadInput where there is none, IntegrityFault where it is torn or of another dataset.
    """
    path = column_path(prefix, name)
    if not path.is_file():
        raise BadInput(Fault(str(path), "is not there.", f"Score {prefix} first, or choose by another score."))
    column = load_column(path)
    if column.shape != (documents,):
        raise IntegrityFault(
            f"{path}: has shape {column.shape} where {prefix} has {documents:,} documents. Write it again."
        )
    return column


def load_column(path: Path) -> npt.NDArray[Any]:
    """An array that is there, mapped from disk. IntegrityFault: it is none, or not whole."""
    try:
        column = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OverflowError, SyntaxError, TokenError) as error:  # numpy parses its header as Python
        raise IntegrityFault(f"{path}: is not a whole .npy file ({error}). Write it again.") from error
    if not isinstance(column, np.ndarray):
        column.close()
        raise IntegrityFault(f"{path}: is an archive of arrays, not a .npy file. Write it again.")
    return column


def check_spans(path: Path, column: npt.NDArray[Any], tokens: int) -> None:
    """Raises IntegrityFault where a column does not hold ascending spans of so many tokens.

    Args:
        path: of the column.
    """
    if column.dtype != LOSS_SPAN:
        raise IntegrityFault(f"{path}: holds no spans of tokens. Prepare or copy it again.")
    bounds = column.reshape(-1).view("<i8")
    outside = len(bounds) > 0 and (bounds[0] < 0 or bounds[-1] > tokens or bool((np.diff(bounds) < 0).any()))
    if column.ndim != 1 or outside:
        raise IntegrityFault(
            f"{path}: holds spans that are not in ascending order, overlap, or lie outside the {tokens:,} "
            "tokens of the dataset. Write it again."
        )
