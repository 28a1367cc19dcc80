"""Texts, and their targets where they have some, from whatever source they are in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from trbert_deploy.errors import DataError, printable
from trbert_deploy.runtime.reading.formats import read_records
from trbert_deploy.runtime.reading.records import Record
from trbert_deploy.runtime.reading.sources import is_regular, name_of
from trbert_deploy.tasks.columns import LABEL, TEXT, TEXT_PAIR, ColumnNames, Columns, missing
from trbert_deploy.tasks.examples import Example
from trbert_deploy.tasks.task import Task

#: Called with what a person should know.
Note = Callable[[str], None]
_MOST_FINDINGS = 256


def no_note(message: str) -> None:
    """Tell nobody."""


def read_examples(
    source: str | Path,
    task: Task | type[Task],
    names: ColumnNames = ColumnNames(),
    note: Note = no_note,
    *,
    with_targets: bool = True,
    whole: bool = False,
    goes_on: bool = False,
) -> Iterator[Example]:
    """The examples of a file, a pipe or standard input (``-``), one at a time.

    JSON lines, JSON, CSV, TSV, Parquet or plain lines, in UTF-8, plain or compressed (``formats``,
    ``sources``). Targets are None where there are none.

    Args:
        task: what reads records.
        names: columns that the user named; the others are found by their names.
        note: told which columns were taken, unless they have our own names.
        with_targets: look for targets at all.
        whole: leave those whole that a model reads in several rows, and do not divide them.
        goes_on: the source is a later part of another one, and may have nothing more.

    Raises:
        StorageError: the source cannot be read.
        DataError: an unknown or damaged format, no text, or a record that is no example.
        MissingDependencyError: what the format needs is not installed.
    """
    path = Path(source)
    records = read_records(path, names.known_texts, note)
    yield from examples_of(
        records,
        name_of(path),
        task,
        names,
        note,
        with_targets=with_targets,
        whole=whole,
        goes_on=goes_on,
    )


def examples_of(
    records: Iterable[Record],
    source: str,
    task: Task | type[Task],
    names: ColumnNames = ColumnNames(),
    note: Note = no_note,
    *,
    with_targets: bool = True,
    whole: bool = False,
    goes_on: bool = False,
) -> Iterator[Example]:
    """Records as examples; ``source`` is what errors and notes call them together.

    Raises:
        DataError: as ``read_examples``.
    """
    finder = _Finder(source, names, task, note, with_targets=with_targets, goes_on=goes_on)
    for record in records:
        example = task.read(record.values, record.name, finder.columns_of(record))
        yield from [example] if whole else task.divided(example)
    finder.require_named()


def count_examples(source: str | Path, names: ColumnNames = ColumnNames()) -> int | None:
    """How many there are to read, or None for what can be read once only, such as a pipe."""
    path = Path(source)
    if not is_regular(path):
        return None
    return sum(1 for _ in read_records(path, names.known_texts, no_note))


class _Finder:
    """Finds the columns of records, which need not have the same ones."""

    def __init__(
        self,
        source: str,
        names: ColumnNames,
        task: Task | type[Task],
        note: Note,
        *,
        with_targets: bool,
        goes_on: bool = False,
    ) -> None:
        self._source = source
        self._names = names
        self._task = task
        self._targets = task.columns if with_targets else ()
        self._note = note
        self._found: dict[tuple[str, ...], Columns] = {}
        self._told: set[tuple[str, str]] = set()
        self._keys: tuple[str, ...] | None = () if goes_on else None
        self._labelled = False

    def columns_of(self, record: Record) -> Columns:
        """The columns of a record; said aloud where another one is taken than before.

        Raises:
            DataError: it has no text, or lacks a column that was named. A named pair may be
                missing in later records, and a named label in some.
        """
        keys = tuple(record.values)
        columns = self._found.get(keys)
        if columns is None:
            task = self._task
            columns = self._names.find(keys, self._targets, record.name, task.texts, task.lists)
            if self._keys is None and columns.pair is None and self._names.pair is not None:
                raise missing(self._names.pair, keys, record.name)
            if len(self._found) >= _MOST_FINDINGS:
                self._found.clear()
            self._found[keys] = columns
            self._keys = keys
            self._labelled |= columns.label is not None
            self._tell(columns)
        return columns

    def require_named(self) -> None:
        """Refuse a source that had nothing, or no label where one was named.

        Raises:
            DataError: it had not.
        """
        if self._keys is None:
            raise DataError(
                f'{self._source} is empty: expected lines such as {{"text": "..."}}, or a header '
                "and rows"
            )
        if self._targets and self._names.label is not None and not self._labelled:
            raise missing(self._names.label, self._keys, f"{self._source}, to its end,")

    def _tell(self, columns: Columns) -> None:
        taken = columns.taken()
        new = set(taken.items()) - self._told
        self._told |= new
        if any(column not in (TEXT, TEXT_PAIR, LABEL) for _, column in new):
            told = ", ".join(f'{part} from "{column}"' for part, column in taken.items())
            self._note(f"{self._source}: {printable(told)}")
