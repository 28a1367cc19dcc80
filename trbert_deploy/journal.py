"""Several files of a directory that change in one step, among others that stay.

The new files are made in a hidden directory, which is then renamed to ``COMMITTED``: with that
they are what the directory holds. They are linked to their places after it, and the hidden
directory goes when all are there. A process that is killed in between leaves it: who comes next,
to write or to read, puts the files into their places, or reads them from there where it may not
write.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from trbert_deploy.errors import TrbertError
from trbert_deploy.files import followed, staged_file
from trbert_deploy.locks import hold
from trbert_deploy.replacing import staging_in, staging_name, sync, sync_tree

COMMITTED = ".trbert-committed"

Result = TypeVar("Result")


@contextmanager
def staged_files(directory: Path, names: Collection[str]) -> Iterator[Path]:
    """A temporary directory whose files become those of ``directory`` when the block ends well.

    Args:
        names: of the files that belong together, some of them perhaps in folders: such as are not
            made anew are removed. All others stay.
    """
    directory = followed(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with staging_in(directory) as staging:
        yield staging
        sync_tree(staging)
        _commit(staging, directory, names)
        _put_in_place(directory, names)


def _commit(staging: Path, directory: Path, names: Collection[str]) -> None:
    while True:
        _finish(directory, names)
        try:
            staging.rename(directory / COMMITTED)
        except OSError as problem:  # another writer came first
            if problem.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            sync(directory)
            return


def _put_in_place(directory: Path, names: Collection[str]) -> None:
    """Bring what is committed to where it belongs; whoever does so twice, does the same."""
    committed = directory / COMMITTED
    made = {
        path.relative_to(committed).as_posix() for path in committed.rglob("*") if path.is_file()
    }
    for name in sorted(made):
        (directory / name).parent.mkdir(exist_ok=True)
        with staged_file(directory / name) as staging:
            staging.unlink()
            try:
                os.link(committed / name, staging)
            except OSError:  # on another disk, where a link leads to, or one that has no such links
                shutil.copyfile(committed / name, staging)
    for name in set(names) - made:
        (directory / name).unlink(missing_ok=True)
    sync(directory)
    done = committed.rename(directory / staging_name())
    shutil.rmtree(done, ignore_errors=True)


def settle(directory: Path, names: Collection[str]) -> Path:
    """Finish what a killed writer committed, once a living one has.

    Returns:
        Where to read the files of ``names``: ``directory``, or what was committed if this process
        cannot write there.
    """
    try:
        _finish(directory, names)
    except OSError:
        return directory / COMMITTED
    return directory


def _finish(directory: Path, names: Collection[str]) -> None:
    committed = directory / COMMITTED
    while committed.is_dir():
        with suppress(FileNotFoundError), hold(committed, wait=True):
            _put_in_place(directory, names)


def read_settled(directory: Path, names: Collection[str], read: Callable[[Path], Result]) -> Result:
    """What ``read`` makes of the files, all from before a change or all from after it.

    Args:
        read: given the directory that they are in; called again if they change meanwhile.
    """
    while True:
        source = settle(directory, names)
        before = _state(source, names)
        try:
            result = read(source)
        except (TrbertError, OSError):
            if _changed(directory, source, names, before):
                continue
            raise
        if not _changed(directory, source, names, before):
            return result


#: For each file what changes when another takes its place.
_State = dict[str, tuple[int, int, int]]


def _state(source: Path, names: Collection[str]) -> _State:
    state = {}
    for name in names:
        with suppress(FileNotFoundError):
            found = (source / name).stat()
            state[name] = (found.st_ino, found.st_mtime_ns, found.st_size)
    return state


def _changed(directory: Path, source: Path, names: Collection[str], before: _State) -> bool:
    begun = source == directory and (directory / COMMITTED).is_dir()
    return begun or _state(source, names) != before
