"""What runs inside of the server: its Python backend calls this class.

It needs what a server of models needs anyway: this package with the extra of its backend.
``triton_python_backend_utils`` comes with the server, and is nowhere else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from trbert_deploy.errors import OutputError, TrbertError
from trbert_deploy.runtime.loading import load
from trbert_deploy.serving.tensors import (
    ANSWER,
    inputs_of,
    numbers_of,
    strings_of,
    values_of,
)
from trbert_deploy.serving.triton.repository import BUNDLE
from trbert_deploy.serving.triton.settings import Loading
from trbert_deploy.serving.triton.together import Columns, answer_together
from trbert_deploy.tasks.predictions import Prediction

DEVICES = "CUDA_VISIBLE_DEVICES"


class TritonPythonModel:
    """A bundle that answers what the server hands over."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the bundle that lies beside model.py.

        Args:
            args: as the server gives them: where the model lies, its version, its configuration as
                JSON, and the device of this instance.

        Raises:
            TrbertError: as ``load``; the server then has no such model, and its log says why.
        """
        if args["model_instance_kind"] == "GPU":
            _see_only(int(args["model_instance_device_id"]))
        told = json.loads(args["model_config"])["parameters"]
        loading = Loading.of({name: each["string_value"] for name, each in told.items()})
        bundle = Path(args["model_repository"]) / args["model_version"] / BUNDLE
        self._pipeline = load(bundle, note=pb_utils.Logger.log_info, **asdict(loading))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests together.

        Returns:
            A response for each request, in order: tensors, or an error.
        """
        answers = answer_together(self._pipeline, list(map(self._columns, requests)))
        return list(map(self._response, requests, answers))

    def _columns(self, request: Any) -> Columns:
        tensors = {
            name: pb_utils.get_input_tensor_by_name(request, name)
            for name in inputs_of(self._pipeline.task)
        }
        return {
            name: tensor.as_numpy().ravel().tolist()  # [N, 1] -> N bytes
            for name, tensor in tensors.items()
            if tensor is not None
        }

    def _response(self, request: Any, answers: list[Prediction] | TrbertError) -> Any:
        if isinstance(answers, TrbertError):
            code = (
                pb_utils.TritonError.INTERNAL
                if isinstance(answers, OutputError)
                else pb_utils.TritonError.INVALID_ARG
            )
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(answers), code))
        numbers, wanted = numbers_of(self._pipeline.task), request.requested_output_names()
        tensors = []
        if ANSWER in wanted:
            told = [[line.encode()] for line in strings_of(answers)]  # [N, 1]
            tensors.append(pb_utils.Tensor(ANSWER, np.array(told, np.object_)))
        if numbers is not None and numbers.name in wanted:
            tensors.append(pb_utils.Tensor(numbers.name, values_of(numbers, answers)))
        return pb_utils.InferenceResponse(tensors)


def _see_only(device: int) -> None:
    """Have backends find one GPU alone, that of this instance, whose process is its own.

    Args:
        device: its place among those that the server sees.
    """
    visible = os.environ.get(DEVICES)
    os.environ[DEVICES] = str(device) if visible is None else visible.split(",")[device]
