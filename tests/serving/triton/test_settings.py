"""What a model is loaded with, as strings of config.pbtxt and back."""

from __future__ import annotations

import pytest

from trbert_deploy.errors import ConfigError
from trbert_deploy.serving.triton.settings import Loading, Settings


@pytest.mark.parametrize(
    "loading", [Loading(), Loading("openvino", "bf16", 3, 0.25, False), Loading("auto")]
)
def test_parameters_come_back(loading: Loading) -> None:
    assert Loading.of(loading.to_parameters()) == loading


def test_what_is_left_out_has_its_default_and_capitals_are_the_server_s() -> None:
    assert Loading.of({"EXECUTION_ENV_PATH": "/opt/env.tar.gz"}) == Loading()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"thread": "1"}, "the model's configuration has the fields .*'thread'"),
        ({"threads": "many"}, "threads of the model's configuration is 'many': expected int"),
        ({"threads": "-1"}, "threads is -1: expected a whole number from 0"),
        ({"backend": "tensorflow"}, "unknown backend 'tensorflow': expected one of onnxruntime"),
        ({"precision": "bf16"}, "backend onnxruntime cannot be asked for bf16"),
        ({"threshold": "1.5"}, "1.5"),
        ({"truncate": "yes"}, "truncate of the model's configuration is 'yes': expected bool"),
    ],
)
def test_wrong_parameters_are_refused(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Loading.of(parameters)


@pytest.mark.parametrize("name", ["instances", "max_batch_size", "queue_delay_us"])
def test_numbers_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is -1: expected a whole number"):
        Settings(**{name: -1})
