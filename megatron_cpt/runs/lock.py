"""One job at a time in a run folder: two that train into one would write over each other's checkpoints."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_cpt.config.errors import BadInput, Fault


@contextmanager
def only_job(folder: Path) -> Iterator[None]:
    """Holds RUN/lock during the block. It is the process's, not its children's, and ends with it, however it ends.

    Raises:
        BadInput: another job holds it.
    """
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or "another job"
            rule = f"{holder} is training in this folder."
            raise BadInput(Fault(f"run.folder = {folder}", rule, "Wait for it, end it, or name another.")) from None
        except OSError:  # a file system without locks
            yield
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
