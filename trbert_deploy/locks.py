"""Locks on directories that end with their process, however it ends."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: What a file system without such locks answers.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL}


@contextmanager
def hold(directory: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the one lock that a directory has (flock); nothing is written for it.

    Args:
        wait: until another process gives it up; otherwise that is an error.

    Yields:
        Whether it is held: False where the file system has no locks.

    Raises:
        BlockingIOError: another process, or another block of this one, holds it.
        FileNotFoundError: the directory is not there, or not there any more.
    """
    if sys.platform == "win32":
        yield False
        return
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        held = _lock(handle, wait)
        # Whoever had the lock may have put another directory in its place.
        while not os.path.samestat(os.fstat(handle), directory.stat()):
            former, handle = handle, os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            os.close(former)
            held = _lock(handle, wait)
        yield held
    finally:
        os.close(handle)


def _lock(handle: int, wait: bool) -> bool:
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as problem:
        if problem.errno in _NO_LOCKS:
            return False
        raise
    return True
