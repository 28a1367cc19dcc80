"""Ways to damage a file: its bytes, or what its JSON says."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import Any

#: Stands for a value that is nested this deep, which json could neither copy nor write.
_DEEP = "\0nested {} times\0"
_DEPTHS = (30, 300, 900, 990, 5000, 100_000)

_NUMBERS = (
    0, -1, 1, 2, 3, 7, 64, 65, 255, 10**6, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30,
    10**400, 0.0, -0.0, 0.5, 1.0, 1.5, 2.5, -0.5, 1e-320, 1e300, math.nan, math.inf, -math.inf,
)  # fmt: skip
_STRINGS = (
    "", " ", "a", "0", "64", "none", "..", ".", "/", "../manifest.json", "/etc/passwd", "a/b",
    "a\\b", "manifest.json", "weights.safetensors", "dense.onnx", "segment_0", "dense", "masked",
    "fused", "hidden", "hidden_out", "keep_logit", "input_ids", "token_type_ids", "positions",
    "logits", "attention_mask", "threshold", "ratio", "budget", "text-classification", "bert",
    "fp16",
    "two\nlines", "nul\0", "tab\t", "\x1b[31mred", "\ud800", "\udcff", "ä" * 300, "x" * 5000,
    "\u202e", "\U0001f600", "0" * 64, "null", "{}", "\r", "\x85", "\u2028",
)  # fmt: skip
_OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], {"": None}, [0, 1], {"a": 1})


def any_value(rng: random.Random) -> Any:
    """A value that has nothing to do with what stood there."""
    kind = rng.random()
    if kind < 0.35:
        return rng.choice(_NUMBERS)
    if kind < 0.7:
        return rng.choice(_STRINGS)
    if kind < 0.95:
        return json.loads(json.dumps(rng.choice(_OTHERS)))
    return _DEEP.format(rng.choice(_DEPTHS))


def edited(data: Any, rng: random.Random) -> Any:
    """A copy of a JSON value with one to three edits, at any places."""
    data = json.loads(json.dumps(data))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = _edit(data, rng)
    return data


def _edit(data: Any, rng: random.Random) -> Any:
    places = list(_places(data))
    if not places or rng.random() < 0.005:
        return any_value(rng)
    # The outermost entries are few: half of the edits meet a place by its depth first.
    if rng.random() < 0.5:
        depth = rng.choice(sorted({len(path) for path in places}))
        places = [path for path in places if len(path) == depth]
    *outer, key = rng.choice(places)
    holder = data
    for step in outer:
        holder = holder[step]
    rng.choice(_EDITS)(holder, key, data, rng)
    return data


def _places(data: Any, path: tuple[Any, ...] = ()) -> Any:
    entries: Any = ()
    if isinstance(data, dict):
        entries = data.items()
    elif isinstance(data, list):
        entries = enumerate(data)
    for key, value in entries:
        yield (*path, key)
        yield from _places(value, (*path, key))


def _delete(holder: Any, key: Any, data: Any, rng: random.Random) -> None:
    del holder[key]


def _replace(holder: Any, key: Any, data: Any, rng: random.Random) -> None:
    holder[key] = any_value(rng)


def _duplicate(holder: Any, key: Any, data: Any, rng: random.Random) -> None:
    copy = json.loads(json.dumps(holder[key]))
    if isinstance(holder, list):
        holder.insert(rng.randrange(len(holder) + 1), copy)
    else:
        holder[rng.choice((f"{key}2", key.upper(), key[::-1], rng.choice(_STRINGS)))] = copy


def _rename(holder: Any, key: Any, data: Any, rng: random.Random) -> None:
    if isinstance(holder, dict):
        holder[rng.choice(_STRINGS)] = holder.pop(key)
    else:
        rng.shuffle(holder)


def _tweak(holder: Any, key: Any, data: Any, rng: random.Random) -> None:
    """Nearly what stood there."""
    value = holder[key]
    if isinstance(value, bool) or value is None:
        holder[key] = rng.choice((0, 1, "true", not value))
    elif isinstance(value, int | float):
        nearly = (value + 1, value - 1, -value, str(value), float(value), value + 0.5, value * 2)
        holder[key] = rng.choice((*nearly, [value], bool(value)))
    elif isinstance(value, str):
        nearly = (value + "\n", value + " ", value[:-1], value.upper(), f"../{value}", f"./{value}")
        holder[key] = rng.choice(
            (*nearly, f"{value}\0", [value], {value: value}, value.encode().hex())
        )
    elif isinstance(value, list):
        holder[key] = rng.choice(
            (
                value * 2,
                value[::-1],
                value[:-1],
                {str(n): each for n, each in enumerate(value)},
                [value],
            )
        )
    else:
        holder[key] = rng.choice((list(value), list(value.values()), [value], {**value, "x": 1}))


def _swap(holder: Any, key: Any, data: Any, rng: random.Random) -> None:
    """A copy of what stands elsewhere."""
    *outer, other = rng.choice(list(_places(data)))
    source = data
    for step in outer:
        source = source[step]
    holder[key] = json.loads(json.dumps(source[other]))


_EDITS: tuple[Callable[..., None], ...] = (
    _delete, _replace, _replace, _duplicate, _rename, _tweak, _tweak, _swap,
)  # fmt: skip


def to_text(data: Any, **options: Any) -> str:
    """JSON of an edited value."""
    text = json.dumps(data, **options)
    for depth in _DEPTHS:
        mark = json.dumps(_DEEP.format(depth))
        text = text.replace(mark, "[" * depth + "]" * depth)
    return text


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Other bytes than ``content``: some flipped, inserted, lost, doubled or cut off."""
    place = rng.randrange(len(content)) if content else 0
    size = min(rng.choice((1, 1, 1, 2, 4, 8, 64, 1024)), max(len(content) - place, 1))
    kind = rng.randrange(7)
    if kind == 0 and content:
        mask = bytes(rng.randrange(1, 256) for _ in content[place : place + size])
        part = bytes(a ^ b for a, b in zip(content[place : place + size], mask, strict=True))
        return content[:place] + part + content[place + size :]
    if kind == 1:
        return content[:place]
    if kind == 2:
        return content[:place] + rng.randbytes(size) + content[place:]
    if kind == 3 and content:
        return content[:place] + content[place + size :]
    if kind == 4 and content:
        return content[:place] + content[place : place + size] + content[place:]
    if kind == 5:
        return content + rng.choice((b"\0", b" ", b"\n", b"{}", content[:size], b"\xff"))
    return rng.choice((b"", b"\0" * len(content), rng.randbytes(size), b"\xef\xbb\xbf" + content))


def renumbered(content: bytes, rng: random.Random) -> bytes:
    """A graph with another digit, or another place, for the weights that lie beside it."""
    name = b"weights.safetensors"
    others = (
        b"../../../etc/passwd",
        b"/etc/./////./passwd",
        b"dense.onnx" + b"\0" * 9,
        b"weights.safetensor_",
    )
    if rng.random() < 0.3 and name in content:
        return content.replace(name, rng.choice(others), rng.choice((-1, 1)))
    digits = [place for place, byte in enumerate(content) if 48 <= byte <= 57]
    if not digits:
        return damaged(content, rng)
    changed = bytearray(content)
    for place in rng.sample(digits, min(len(digits), rng.choice((1, 1, 4)))):
        changed[place] = rng.choice(b"0123456789-")
    return bytes(changed)
