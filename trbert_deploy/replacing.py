"""Hidden directories in which files are made, and directories that take another's place.

What is being made lies in a directory of its own beside its place, which its writer holds a lock
on. A writer that was killed holds none any more: the next one removes what it left.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from trbert_deploy.locks import hold

STAGING_PREFIX = ".trbert-staging-"

#: What is answered where two directories cannot change places; sandboxes forbid the call.
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPERM}
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # Linux
_RENAME_SWAP = 2  # macOS


def staging_name() -> str:
    """A new name for a hidden directory that may be removed once nobody holds its lock."""
    return f"{STAGING_PREFIX}{secrets.token_hex(8)}"


@contextmanager
def staging_in(parent: Path, mode: int = 0o777) -> Iterator[Path]:
    """A new hidden directory in ``parent``, gone when the block ends unless it was moved away.

    What killed processes left there of such directories is removed first.

    Args:
        mode: permissions, of which the umask takes some away.
    """
    _remove_dead(parent)
    with ExitStack() as stack:
        yield _new_staging(parent, mode, stack)


def _new_staging(parent: Path, mode: int, stack: ExitStack) -> Path:
    while True:
        staging = parent / staging_name()
        stack.callback(shutil.rmtree, staging, ignore_errors=True)
        staging.mkdir(mode)
        with suppress(FileNotFoundError):  # another writer took it for one that was left
            stack.enter_context(hold(staging, wait=True))
            return staging


def _remove_dead(parent: Path) -> None:
    """Remove what killed processes left; what a living one holds stays, or what nobody can tell."""
    for path in parent.glob(f"{STAGING_PREFIX}*"):
        with suppress(OSError), hold(path) as held:
            if held:
                shutil.rmtree(path, ignore_errors=True)


def is_empty(directory: Path) -> bool:
    """Whether a directory holds nothing but what killed processes left there."""
    return all(path.name.startswith(STAGING_PREFIX) for path in directory.iterdir())


def take_on(path: Path, state: os.stat_result) -> None:
    """Give ``path`` the permissions of another file, and its owner where that is allowed."""
    own = path.stat()
    if (own.st_uid, own.st_gid) != (state.st_uid, state.st_gid):
        try:
            os.chown(path, state.st_uid, state.st_gid)
        except PermissionError:
            with suppress(PermissionError):
                os.chown(path, -1, state.st_gid)
    path.chmod(stat.S_IMODE(state.st_mode))


def replace_directory(new: Path, target: Path) -> None:
    """Put ``new`` in ``target``'s place in one step; what was there is afterwards where new was.

    Where the system cannot exchange two directories, the old one is moved aside for a moment, in
    which there is none, and comes back if anything goes wrong; if the process is killed in that
    moment, ``put_back`` finds it.
    """
    try:
        new.rename(target)  # nothing is there, or an empty directory
        return
    except OSError as problem:
        if problem.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    try:
        exchange(new, target)
    except OSError as problem:
        if problem.errno not in _NO_EXCHANGE:
            raise
        _replace_in_two_steps(new, target)


def exchange(first: Path, second: Path) -> None:
    """Let two directories change places in one step.

    Raises:
        OSError: refused; errno ENOSYS, EINVAL or ENOTSUP where the system cannot do that.
    """
    places = os.fsencode(first), os.fsencode(second)
    libc = None if sys.platform == "win32" else ctypes.CDLL(None, use_errno=True)
    if libc is not None and sys.platform == "darwin":
        failed = libc.renamex_np(*places, _RENAME_SWAP)
    elif libc is not None and hasattr(libc, "renameat2"):
        failed = libc.renameat2(_AT_FDCWD, places[0], _AT_FDCWD, places[1], _RENAME_EXCHANGE)
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(second))
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(second))


def _aside(target: Path) -> Path:
    """Where the old directory is while the new one takes its place in two steps."""
    return target.with_name(f".{target.name}.trbert-old")


def _replace_in_two_steps(new: Path, target: Path) -> None:
    with hold(target, wait=True):  # so that no other writer takes it for one that was left
        try:
            target.rename(_aside(target))
            new.rename(target)
        finally:
            _settle(target)


def put_back(target: Path) -> None:
    """Mend what a process left that was killed while it replaced ``target`` in two steps."""
    with suppress(OSError), hold(_aside(target)):
        _settle(target)


def _settle(target: Path) -> None:
    """Leave one of two: the new directory if it stands, else the old one."""
    if target.exists():
        shutil.rmtree(_aside(target), ignore_errors=True)
    elif _aside(target).exists():
        _aside(target).rename(target)


def sync(path: Path) -> None:
    """Have the disk keep a file's content, or a directory's names, through a power cut."""
    if sys.platform == "win32" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as problem:
        if problem.errno not in (errno.EINVAL, errno.EBADF):  # a file system that cannot
            raise
    finally:
        os.close(handle)


def sync_tree(directory: Path) -> None:
    """``sync`` of a directory and all that is in it."""
    for path in directory.iterdir():
        if path.is_dir():
            sync_tree(path)
        else:
            sync(path)
    sync(directory)
