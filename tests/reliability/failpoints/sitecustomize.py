"""Lists what a process writes below a folder, and ends it, or fills its disk, at one of these places.

Python imports this file at the start of every process that has its folder in PYTHONPATH, so that children and ranks of
a command have it too. Python itself tells of every file that is opened for writing, renamed or removed and of every
folder that is made (PEP 578); os.fsync is wrapped. So no program needs places of its own for this, and none is
forgotten. What libraries write without Python is seen only when Python renames it.

SOCKETS names a file that gets the addresses of sockets. FAILPOINT is a JSON object: `folder`; `log`, a file that gets a
line a place; `at`, the number of the place in its process, from 1; `action`, `kill` or `full`; `place`, a pattern for
the places that count, such as `rename *.idx`.
"""

import errno
import json
import os
import signal
import sys
import threading
from fnmatch import fnmatchcase
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR


class Failpoint:
    """The places that one process has passed."""

    def __init__(self, folder: str, log: str | None, at: int, action: str, place: str) -> None:
        self._folder, self._log, self._at, self._action, self._place = folder, log, at, action, place
        self._passed = 0
        self._own = threading.local()
        """Whether this thread is here already: what it does here is no place."""

    def heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook: called before the event takes place."""
        if getattr(self._own, "is_busy", False):
            return
        self._own.is_busy = True
        try:
            self._look(event, arguments)
        finally:
            self._own.is_busy = False

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, (str, bytes)) or not (flags or 0) & _WRITING:
                return
            self._pass("open", os.fsdecode(path))
        elif event == "os.rename":
            self._pass("rename", os.fsdecode(arguments[1]))
        elif event in ("os.remove", "os.rmdir"):
            self._pass(event[3:], _below(arguments[0], arguments[1]))
        elif event == "os.mkdir":
            self._pass("mkdir", _below(arguments[0], arguments[2]))

    def fsync(self, descriptor: int) -> None:
        """Called before os.fsync."""
        self._own.is_busy = True
        try:
            self._pass("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
        finally:
            self._own.is_busy = False

    def _pass(self, what: str, path: str) -> None:
        path = os.path.abspath(path)
        if not path.startswith(self._folder + "/"):
            return
        place = f"{what} {os.path.relpath(path, self._folder)}"
        if not fnmatchcase(place, self._place):
            return
        self._passed += 1
        if self._log is not None:
            descriptor = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, f"{os.getpid()} {place}\n".encode())
            os.close(descriptor)
        if self._passed == self._at:
            if self._action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            self._at += 1  # a full disk stays full
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def _below(path: Any, folder: int) -> str:
    name = os.fsdecode(path)
    return name if folder == -1 else os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)


def install(settings: dict[str, Any]) -> None:
    """Has every write of this process told to a Failpoint."""
    failpoint = Failpoint(
        os.path.realpath(settings["folder"]),
        settings.get("log"),
        settings.get("at", 0),
        settings.get("action", "kill"),
        settings.get("place", "*"),
    )
    sys.addaudithook(failpoint.heard)
    synced = os.fsync

    def fsync(file: Any) -> None:
        failpoint.fsync(file if isinstance(file, int) else file.fileno())
        synced(file)

    os.fsync = fsync


def list_sockets(log: str) -> None:
    """Appends a line to a file for every name that is asked for and every address that a socket binds or calls."""

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname"):
            address = arguments[1] if event in ("socket.connect", "socket.bind") else arguments[0]
            if isinstance(address, tuple):
                address = address[0]
            elif event in ("socket.connect", "socket.bind"):
                return  # of this machine alone
            descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, f"{event} {address}\n".encode())
            os.close(descriptor)

    sys.addaudithook(heard)


if "FAILPOINT" in os.environ:
    install(json.loads(os.environ["FAILPOINT"]))
if "SOCKETS" in os.environ:
    list_sockets(os.environ["SOCKETS"])
