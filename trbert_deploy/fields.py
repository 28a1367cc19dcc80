"""What JSON says of a dataclass: the right fields, each of its kind.

JSON knows no dataclasses. A length that is a string, or a name that is a list, would be found
where it is used first, in whatever way that fails.
"""

from __future__ import annotations

import math
import reprlib
import types
import unicodedata
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from trbert_deploy.errors import ConfigError

#: Levels of lists and objects in each other that our own files stay far below.
MOST_LEVELS = 32
_MOST = 2**63  # what every library takes for a whole number
_MOST_LETTERS = 500  # of an object's names in a message
#: Control characters, halves of surrogate pairs, and what breaks a line.
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")


def known_fields(cls: type, data: object, what: str, defaults: bool = False) -> dict[str, Any]:
    """``data`` as a dict, provided that it has the fields of dataclass ``cls`` and no others.

    Args:
        what: the name of such an object in messages.
        defaults: a field with one may be absent, since an older release did not know it.

    Raises:
        ConfigError: other fields, or a value of another kind than its field has.
    """
    known = {entry.name: entry for entry in fields(cls)}
    required = {
        name
        for name, entry in known.items()
        if not defaults or (entry.default is MISSING and entry.default_factory is MISSING)
    }
    if not isinstance(data, Mapping) or not required <= set(data) <= set(known):
        received = (
            repr(sorted(data))[:_MOST_LETTERS] if isinstance(data, Mapping) else type(data).__name__
        )
        raise ConfigError(f"{what} has the fields {received}: expected {sorted(known)}")
    hints = _hints(cls)
    for name, value in data.items():
        require_kind(value, hints[name], f"{name} of {what}")
    return dict(data)


def require_kind(value: object, hint: Any, what: str) -> None:
    """Refuse a JSON value that is not of the kind that an annotation names.

    Raises:
        ConfigError: it is of another kind.
    """
    if get_origin(hint) is Mapping and isinstance(value, Mapping):  # say which entry it is
        for key, each in value.items():
            require_kind(key, get_args(hint)[0], f"a name in {what}")
            require_kind(each, get_args(hint)[1], f"{reprlib.repr(key)} in {what}")
    elif not _fits(value, hint):
        expected = (
            hint.__name__ if hint in (bool, int, float, str) or is_dataclass(hint) else str(hint)
        )
        raise ConfigError(f"{what} is {reprlib.repr(value)}: expected {expected}")


_hints = cache(get_type_hints)


def _fits(value: object, hint: Any) -> bool:
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        return any(_fits(value, each) for each in arguments)
    if kind is tuple:
        return isinstance(value, list | tuple) and all(_fits(each, arguments[0]) for each in value)
    if kind is Mapping:
        return isinstance(value, Mapping) and all(
            _fits(key, arguments[0]) and _fits(each, arguments[1]) for key, each in value.items()
        )
    if kind is Any:
        return not is_deep(value)
    if is_dataclass(kind):
        return isinstance(value, Mapping)  # read by its own fields
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is int:
        return isinstance(value, int) and -_MOST <= value < _MOST
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value)
    if kind is str:
        return isinstance(value, str) and not any(
            unicodedata.category(letter) in _UNPRINTABLE for letter in value
        )
    return isinstance(value, kind)


def is_deep(value: object) -> bool:
    """Whether lists and objects stand in each other in more levels than anybody needs."""
    level = [value]
    for _ in range(MOST_LEVELS):
        level = [
            inner
            for outer in level
            if isinstance(outer, list | tuple | Mapping)
            for inner in (outer.values() if isinstance(outer, Mapping) else outer)
        ]
        if not level:
            return False
    return True
