"""What runs inside of the server, under a small stand-in for the server's Python module."""

from __future__ import annotations

import importlib
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_texts

from trbert_deploy import load
from trbert_deploy.errors import BundleError, ConfigError, OutputError
from trbert_deploy.runtime.predicting import to_json_line
from trbert_deploy.serving.triton.repository import write_repository
from trbert_deploy.serving.triton.settings import Loading

TEXTS = [row["text"] for row in make_texts(4, seed=2)]
MODULE = "trbert_deploy.serving.triton.model"


class Tensor:
    def __init__(self, name: str, values: Any) -> None:
        self.name, self.values = name, values

    def as_numpy(self) -> Any:
        return self.values


class TritonError:
    INTERNAL, INVALID_ARG = "internal", "invalid"

    def __init__(self, message: str, code: str) -> None:
        self.message, self.code = message, code


class Response:
    def __init__(self, tensors: Any = (), error: TritonError | None = None) -> None:
        self.tensors = {each.name: each.values for each in tensors}
        self.error = error


class Request:
    def __init__(self, texts: list[str], outputs: tuple[str, ...] = ("answer", "scores")) -> None:
        self.tensors = {
            "text": Tensor("text", np.array([[text.encode()] for text in texts], np.object_))
        }
        self.outputs = outputs

    def requested_output_names(self) -> tuple[str, ...]:
        return self.outputs


@pytest.fixture
def model_type(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The class that the server calls."""
    utils: Any = types.ModuleType("triton_python_backend_utils")
    utils.Tensor, utils.TritonError, utils.InferenceResponse = Tensor, TritonError, Response
    utils.Logger = types.SimpleNamespace(log_info=print)
    utils.get_input_tensor_by_name = lambda request, name: request.tensors.get(name)
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield importlib.import_module(MODULE).TritonPythonModel
    del sys.modules[MODULE]


def arguments(model: Path, kind: str = "CPU", device: int = 0, **parameters: str) -> dict[str, str]:
    told = {name: {"string_value": value} for name, value in parameters.items()}
    return {
        "model_config": json.dumps({"parameters": told}),
        "model_repository": str(model),
        "model_version": "1",
        "model_instance_kind": kind,
        "model_instance_device_id": str(device),
    }


@pytest.fixture(scope="module")
def folder(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's folder in a repository."""
    place = tmp_path_factory.mktemp("repository")
    write_repository(tiny_bundle, place, "labels")
    return place / "labels"


def test_it_answers_what_is_wanted(model_type: Any, folder: Path, tiny_bundle: Path) -> None:
    model = model_type()
    model.initialize(arguments(folder, **Loading(threads=1, threshold=0.9).to_parameters()))
    expected = load(tiny_bundle, threads=1, threshold=0.9)(TEXTS)
    both, scores = model.execute([Request(TEXTS[:3]), Request(TEXTS[3:], ("scores",))])
    assert both.tensors["answer"].tolist() == [[to_json_line(e).encode()] for e in expected[:3]]
    told = np.array([list(each.to_json()["scores"].values()) for each in expected], np.float32)
    np.testing.assert_array_equal(both.tensors["scores"], told[:3])
    assert set(scores.tensors) == {"scores"}
    np.testing.assert_array_equal(scores.tensors["scores"], told[3:])


def test_errors_say_whose_they_are(
    model_type: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_type()
    model.initialize(arguments(folder, threads="1"))
    bad, good = model.execute([Request([" "]), Request(TEXTS)])
    assert bad.error.code == TritonError.INVALID_ARG
    assert bad.error.message == "text[0] is empty: expected at least one word"
    assert good.error is None and len(good.tensors["answer"]) == len(TEXTS)
    broken = [OutputError("the model's output is no number")]
    monkeypatch.setattr(sys.modules[MODULE], "answer_together", lambda pipeline, asked: broken)
    (fault,) = model.execute([Request(TEXTS)])
    assert fault.error.code == TritonError.INTERNAL


@pytest.mark.parametrize(
    ("visible", "kind", "seen"),
    [(None, "GPU", "1"), ("4,GPU-7", "GPU", "GPU-7"), (None, "CPU", None), ("4,5", "CPU", "4,5")],
)
def test_an_instance_sees_its_own_gpu_alone(
    model_type: Any,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    kind: str,
    seen: str | None,
) -> None:
    variables = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    monkeypatch.setattr(sys.modules[MODULE].os, "environ", variables)
    monkeypatch.setattr(sys.modules[MODULE], "load", lambda bundle, **options: None)
    model_type().initialize(arguments(folder, kind, 1))
    assert variables.get("CUDA_VISIBLE_DEVICES") == seen


def test_what_cannot_be_loaded_is_said(model_type: Any, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the model's configuration has the fields"):
        model_type().initialize(arguments(folder, thresholds="0.5"))
    (tmp_path / "1" / "bundle").mkdir(parents=True)
    with pytest.raises(BundleError, match="is not a bundle"):
        model_type().initialize(arguments(tmp_path))
