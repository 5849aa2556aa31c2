"""PREFIX.NAME.npy: one value per document beside a dataset: `documents`, and scores by any name.

Plain .npy files, written as a stream and mapped when read.
"""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault
from megatron_cpt.runs.durable import durable_file

DOCUMENTS = "documents"
"""The column that prepare writes."""
DOCUMENT_RECORD = np.dtype([("content_hash", "<u8"), ("bytes", "<i8")])
"""Of each document: 64-bit hash of its text (holdout.py), UTF-8 bytes of its text."""


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
    try:
        column = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise IntegrityFault(f"{path}: is not a whole .npy file ({error}). Write it again.") from error
    if column.shape != (documents,):
        raise IntegrityFault(
            f"{path}: has shape {column.shape} where {prefix} has {documents:,} documents. Write it again."
        )
    return column
