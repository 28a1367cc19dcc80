"""The Open Inference Protocol's binary tensors: JSON first, then the tensors' bytes.

The header ``Inference-Header-Content-Length`` says how many bytes are JSON. A tensor whose
``parameters`` have ``binary_data_size`` takes as many of those behind it, in the tensors' order.
A string is four bytes that say how many follow, little-endian, and its UTF-8; numbers are
little-endian, row by row.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.errors import DataError

JSON_LENGTH = "Inference-Header-Content-Length"
SIZE = "binary_data_size"
_LENGTH = struct.Struct("<I")


def with_data(body: bytes, json_length: str) -> bytes:
    """A request as JSON alone: strings that stood behind it are its tensors' ``data``.

    What is no JSON, or no request, is left to whoever reads it.

    Args:
        json_length: what the header said.

    Raises:
        DataError: the lengths do not fit the body, or a string is no UTF-8.
    """
    told, rest = body[: _count(json_length, len(body), JSON_LENGTH)], memoryview(body)
    place = len(told)
    try:
        request = json.loads(told)
        tensors = [each for each in request["inputs"] if SIZE in (each.get("parameters") or {})]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return told
    for tensor in tensors:
        name = str(tensor.get("name"))
        size = _count(tensor["parameters"][SIZE], len(body) - place, f"{SIZE} of {name}")
        if tensor.get("datatype") == "BYTES":
            tensor["data"] = list(_strings(rest[place : place + size], name))
        else:
            tensor["data"] = []  # a wrong type anyway
        place += size
    if place != len(body):
        raise DataError(
            f"the body has {len(body) - place:,} bytes behind its tensors: expected none"
        )
    return json.dumps(request).encode()


def _count(given: Any, most: int, name: str) -> int:
    """A number of bytes that there are."""
    if isinstance(given, str) and given.isascii() and given.isdigit() and len(given) < 20:
        given = int(given)
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given <= most:
        raise DataError(f"{name} is {given!r}: expected a number of bytes, of {most:,} at most")
    return given


def _strings(data: memoryview, name: str) -> Iterator[str]:
    """The strings that a tensor's bytes hold.

    Raises:
        DataError: they end within one, or one is no UTF-8.
    """
    place = number = 0
    while place < len(data):
        start = place + _LENGTH.size
        stop = start
        if start <= len(data):
            stop += _LENGTH.unpack_from(data, place)[0]
        if stop > len(data) or start > len(data):
            raise DataError(f"{name} ends within its string {number}: expected it whole")
        try:
            yield str(data[start:stop], "utf-8")
        except UnicodeDecodeError:
            raise DataError(f"{name}[{number}] is no UTF-8 text") from None
        place, number = stop, number + 1


def bytes_of(values: Sequence[str] | NDArray[np.float32]) -> bytes:
    """A tensor's bytes: of strings, or of numbers."""
    if isinstance(values, np.ndarray):
        return values.astype("<f4").tobytes()
    encoded = [each.encode() for each in values]
    return b"".join(part for each in encoded for part in (_LENGTH.pack(len(each)), each))


def binary_answer(answer: dict[str, Any], data: Iterable[bytes]) -> tuple[bytes, dict[str, str]]:
    """An answer's body and headers.

    Args:
        answer: as JSON; its tensors that have no ``data`` say how long theirs is.
        data: theirs.
    """
    told = json.dumps(answer).encode()
    headers = {JSON_LENGTH: str(len(told)), "Content-Type": "application/octet-stream"}
    return b"".join((told, *data)), headers
