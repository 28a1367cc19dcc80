"""A dataclass as TOML: fields are keys, and fields that are dataclasses themselves are tables.

A field has its ``help`` in its metadata, which is written above its key. TOML has no word for None:
such a field is left out, but for a comment that sets it to the ``example`` in its metadata.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from itertools import groupby
from typing import Any, TypeVar, get_type_hints

from trbert_deploy.errors import ConfigError, printable
from trbert_deploy.fields import require_kind

Table = TypeVar("Table")

#: A field's annotation -> what a person calls such a value.
_KINDS = {
    bool: "true or false",
    int: "a whole number",
    int | None: "a whole number",
    float: "a number",
    str: "text in quotes",
    str | None: "text in quotes",
    tuple[str, ...]: 'a list such as ["one", "two"]',
}
_MOST_LETTERS = 80  # of an unknown name in a message


@dataclass(frozen=True)
class Key:
    """A key of a file; as text, its name as a person finds it there.

    Attributes:
        table: that it stands in; empty above the first one.
        entry: the field.
        value: of the field.
    """

    table: str
    entry: Field[Any]
    value: Any

    def __str__(self) -> str:
        return _shown(self.table, self.entry.name)


def _shown(table: str, name: str) -> str:
    return f"[{table}] {name}" if table else name


def keys_of(value: Any, table: str = "") -> Iterator[Key]:
    """The keys of a dataclass in the order of a file, those of its tables at the end."""
    entries = [(entry, getattr(value, entry.name)) for entry in fields(value)]
    yield from (Key(table, entry, each) for entry, each in entries if not is_dataclass(each))
    for entry, each in entries:
        if is_dataclass(each):
            yield from keys_of(each, entry.name)


def to_toml(value: Any, heading: Iterable[str]) -> str:
    """The text of a file, with a comment above each key, and ``heading`` above all."""
    import tomlkit

    document = tomlkit.document()
    for line in heading:
        document.add(tomlkit.comment(line))
    for name, keys in groupby(keys_of(value), key=lambda key: key.table):
        table = tomlkit.table() if name else document
        for key in keys:
            metadata = key.entry.metadata
            table.add(tomlkit.comment(metadata["help"]))
            if key.value is None:
                example = tomlkit.item(metadata["example"]).as_string()
                table.add(tomlkit.comment(f"{key.entry.name} = {example}"))
            else:
                values = list(key.value) if isinstance(key.value, tuple) else key.value
                table.add(key.entry.name, values)
        table.add(tomlkit.nl())
        if name:
            document.add(name, table)
    return tomlkit.dumps(document).rstrip() + "\n"


def merged(base: Table, data: Mapping[str, Any]) -> Table:
    """``base`` with the values that a file gives.

    Raises:
        ConfigError: an unknown key or table, a value of another kind than its field has, or one
            that the dataclass refuses.
    """
    return _merged(base, data, "", list(keys_of(base)))


def _merged(base: Table, data: Mapping[str, Any], table: str, known: Sequence[Key]) -> Table:
    hints = get_type_hints(type(base))
    changes: dict[str, Any] = {}
    for name, value in data.items():
        if name not in hints:
            if isinstance(value, Mapping) and not table:
                raise ConfigError(_unknown_table(name, known))
            raise ConfigError(_unknown_key(table, name, known))
        current = getattr(base, name)
        if not is_dataclass(current):
            changes[name] = _of_kind(value, hints[name], _shown(table, name))
        elif isinstance(value, Mapping):
            changes[name] = _merged(current, value, name, known)
        else:
            raise ConfigError(f"{name} is {reprlib.repr(value)}: expected a table, [{name}]")
    return replace(base, **changes)  # type: ignore[type-var]


def _of_kind(value: object, hint: Any, what: str) -> object:
    try:
        require_kind(value, hint, what)
    except ConfigError:
        raise ConfigError(f"{what} is {reprlib.repr(value)}: expected {_KINDS[hint]}") from None
    return tuple(value) if isinstance(value, list) else value


def _unknown_table(name: str, known: Sequence[Key]) -> str:
    tables = {key.table: f"[{key.table}]" for key in known if key.table}
    near = [tables[each] for each in get_close_matches(name, tables, 1)]
    return _advised(f"[{name}]", near, list(tables.values()))


def _unknown_key(table: str, name: str, known: Sequence[Key]) -> str:
    here = [key.entry.name for key in known if key.table == table]
    shown = _shown(table, name)
    near = [
        str(key) if key.table else f"{key} above the first table"
        for key in known
        if key.entry.name == name  # in another table
    ]
    near = near or [_shown(table, each) for each in get_close_matches(name, here, 1)]
    near = near or get_close_matches(shown, [str(key) for key in known], 1, cutoff=0.7)
    return _advised(shown, near, here)


def _advised(unknown: str, near: Sequence[str], known: Sequence[str]) -> str:
    unknown = printable(unknown)[:_MOST_LETTERS]
    if near:
        return f"{unknown} is unknown: did you mean {' or '.join(near)}?"
    return f"{unknown} is unknown: expected {', '.join(known)}"
