"""Tensors as bytes behind their JSON: what Triton's client writes is read, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tritonclient.http as tritonclient
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import serialize_byte_tensor

from trbert_deploy.errors import DataError
from trbert_deploy.serving.binary_tensors import JSON_LENGTH, binary_answer, bytes_of, with_data

STRINGS = st.lists(st.text(st.characters(exclude_categories=["Cs"])))


@given(STRINGS, STRINGS)
def test_what_the_client_writes_is_read(first: list[str], second: list[str]) -> None:
    given_strings = {"text": first, "text_pair": second}
    tensors = []
    for name, strings in given_strings.items():
        tensors.append(tritonclient.InferInput(name, [len(strings)], "BYTES"))
        array = np.empty(len(strings), object)
        array[:] = strings
        tensors[-1].set_data_from_numpy(array, binary_data=True)
    written, length = tritonclient.InferenceServerClient.generate_request_body(tensors)
    told = json.loads(with_data(bytes(written), str(length or len(written))))
    assert {each["name"]: each.get("data", []) for each in told["inputs"]} == given_strings


@given(STRINGS)
def test_what_is_written_is_read_by_the_client(strings: list[str]) -> None:
    array = np.empty(len(strings), object)
    array[:] = strings
    serialized = serialize_byte_tensor(array)
    expected = serialized.item() if serialized.size else b""
    assert bytes_of(strings) == expected
    numbers = np.arange(6, dtype=np.float32).reshape(2, 3)
    data = [bytes_of(strings), bytes_of(numbers)]
    outputs = [
        {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": n}}
        for name, datatype, shape, n in (
            ("answer", "BYTES", [len(strings)], len(data[0])),
            ("scores", "FP32", [2, 3], len(data[1])),
        )
    ]
    body, headers = binary_answer({"model_name": "m", "outputs": outputs}, data)
    parsed = tritonclient.InferenceServerClient.parse_response_body(
        body, header_length=int(headers[JSON_LENGTH])
    )
    np.testing.assert_array_equal(parsed.as_numpy("scores"), numbers)
    if strings:
        assert [each.decode() for each in parsed.as_numpy("answer")] == strings


def request(size: Any, rest: bytes, datatype: str = "BYTES") -> tuple[bytes, str]:
    tensor = {"name": "text", "shape": [1], "datatype": datatype}
    told = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": size}}]}).encode()
    return told + rest, str(len(told))


@pytest.mark.parametrize(
    ("body", "length", "message"),
    [
        (*request(5, b"\1\0\0\0a")[:1], "-1", "Header-Content-Length is '-1': expected a number"),
        (*request(5, b"\1\0\0\0a")[:1], "9" * 30, "expected a number of bytes"),
        (*request(5, b"\1\0\0\0a")[:1], "2.0", "expected a number of bytes"),
        (*request(6, b"\1\0\0\0a"), "binary_data_size of text is 6: .* 5 at most"),
        (*request(True, b"\1\0\0\0a"), "binary_data_size of text is True"),
        (*request(None, b"\1\0\0\0a"), "binary_data_size of text is None"),
        (*request(4, b"\1\0\0\0a"), "text ends within its string 0"),
        (*request(3, b"\1\0\0"), "text ends within its string 0"),
        (*request(7, b"\1\0\0\0a\0\0"), "text ends within its string 1"),
        (*request(8, b"\xff\xff\xff\xffaaaa"), "text ends within its string 0"),
        (*request(5, b"\1\0\0\0\xff"), r"text\[0\] is no UTF-8"),
        (*request(5, b"\1\0\0\0ab"), "1 bytes behind its tensors"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(body: bytes, length: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        with_data(body, length)


@pytest.mark.parametrize(
    "told", [b"", b"{", b"[]", b"[" * 100_000, b"{}", b'{"inputs": 3}', b'{"inputs": [3]}', b"\xff"]
)
def test_what_is_no_request_is_left_to_its_reader(told: bytes) -> None:
    assert with_data(told + b"rest", str(len(told))) == told


def test_numbers_are_no_texts() -> None:
    told = json.loads(with_data(*request(4, b"\0\0\0\0", "FP32")))
    assert told["inputs"][0]["data"] == []  # and its type is refused where it is read
