"""What a neighbour on a shared file system could do to a run: links in the place of its files, folders of others.

A link would have the run write over what it names. In a folder that is another user's, or that everybody may write to,
another user decides what a resume reads. root is not refused: folders that are mounted into a container are rarely its.
"""

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from megatron_cpt.config.errors import BadInput, Fault


def no_link(path: str, flags: int) -> int:
    """Opens a file for `open(..., opener=no_link)`. Raises BadInput where it is a symbolic link."""
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        rule = "is a symbolic link: what it names would be written to."
        raise BadInput(Fault(path, rule, "Remove it.")) from None


def keep_others_from_writing() -> None:
    """What this process makes from now on is not for everybody to write, whatever the umask was."""
    os.umask(os.umask(0o077) | 0o002)


def owner_faults(folders: Iterable[Path]) -> Iterator[Fault]:
    """Folders of another user, root's apart."""
    for folder in folders:
        owner = folder.stat().st_uid if folder.exists() else os.geteuid()
        if os.geteuid() != 0 and owner not in (os.geteuid(), 0):
            rule = f"belongs to user {owner}, not to this one ({os.geteuid()}), who could change what the run reads."
            yield Fault(str(folder), rule, "Train in a folder of your own (`run.folder`), or have it given to you.")


def writable_warnings(folders: Iterable[Path]) -> Iterator[str]:
    """Folders that others may write to; the group that has the user's own number is the user's alone."""
    for folder in folders:
        found = folder.stat() if folder.exists() else None
        if found is None:
            continue
        others = "everybody" if found.st_mode & stat.S_IWOTH else None
        if others is None and found.st_mode & stat.S_IWGRP and found.st_gid not in (0, os.geteuid()):
            others = f"its group ({found.st_gid})"
        if others is not None:
            yield (
                f"{folder} can be written to by {others}, who could change what a resume reads: "
                f"`chmod {'o' if others == 'everybody' else 'g'}-w {folder}`"
            )
