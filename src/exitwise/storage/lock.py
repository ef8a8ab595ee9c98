"""A lock on a folder: one process holds it, and the kernel frees it when that ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exitwise.errors import ExitwiseWarning, UserError

LOCK = ".lock"
"""Name of the file in the folder; it stays there, and means nothing by itself."""

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made if needed.

    It is a record lock, of this process alone: a child that outlives it does not hold it. On a file system without
    locks there is a warning in its place.

    Raises:
        UserError: if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(descriptor, folder)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def check_unlocked(folder: Path) -> None:
    """Raise UserError if another process holds the lock. Not for the one that does, which would lose it by looking."""
    if (folder / LOCK).is_file():
        with locked(folder):
            pass


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            message = f"{folder} cannot be locked ({error.strerror}): take care that nothing else writes to it"
            warnings.warn(message, ExitwiseWarning, stacklevel=4)
        elif error.errno in (errno.EAGAIN, errno.EACCES):
            holder = _holder(descriptor)
            raise UserError(f"{folder} is being written by {holder}: wait for it, or choose another --out") from None
        else:
            raise


def _holder(descriptor: int) -> str:
    """Return who holds the lock, as it says in the file; it may not have come to write there yet."""
    text = ""
    for _ in range(20):
        text = os.pread(descriptor, 200, 0).decode(errors="replace")
        if text and not _is_gone(text):
            break
        time.sleep(0.05)
    return text or "another process"


def _is_gone(holder: str) -> bool:
    """Return whether the text is that of a process of this machine which has ended, and held the lock before."""
    found = re.fullmatch(rf"process (\d+) on {re.escape(socket.gethostname())}", holder)
    try:
        if found is not None:
            os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
