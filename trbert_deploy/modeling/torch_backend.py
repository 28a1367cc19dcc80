"""Runs a bundle with PyTorch: the reference that every other backend is compared with."""

from __future__ import annotations

import numpy as np
import torch

from trbert_deploy.batching import NO_PADDING
from trbert_deploy.bounds import MOST_THREADS, MOST_TOKENS, require_whole
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import (
    AT_EXIT,
    DENSE,
    HALVED,
    HEAD,
    HIDDEN,
    HIDDEN_OUT,
    KEEP_LOGIT,
    QUANTIZED,
    TRANSPOSED,
    WEIGHTS,
    dropped_name,
    segment_name,
    states_name,
)
from trbert_deploy.modeling.checkpoints.weight_files import read_safetensors
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.primitive_cache import bound_primitive_cache
from trbert_deploy.modeling.segments import (
    DroppedModule,
    HeadModule,
    SegmentModule,
    StatesModule,
    dense_module,
    segment_module,
)
from trbert_deploy.runtime.arrays import HOST, Arrays
from trbert_deploy.runtime.backends.backend import BackendOptions, Tensors
from trbert_deploy.runtime.once import OncePerKey
from trbert_deploy.tasks.registry import task_of


class TorchGraph:
    """A segment's module, called with named numpy arrays."""

    def __init__(self, module: SegmentModule, answers: tuple[str, ...]) -> None:
        self._module = module
        self._answers = answers
        self.inputs = module.inputs

    @torch.inference_mode()
    def __call__(self, inputs: Tensors) -> Tensors:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in inputs.items()}
        hidden, *scores = self._module(**tensors)
        outputs = dict(zip(self._answers, (value.numpy() for value in scores), strict=True))
        return outputs if self._module.answers else {HIDDEN_OUT: hidden.numpy(), **outputs}


class TorchTokens:
    """As ``TorchGraph``, of what tokens say, each for itself."""

    def __init__(self, module: DroppedModule | HeadModule, answers: tuple[str, ...]) -> None:
        self._module = module
        self._answers = answers
        self.inputs = module.inputs

    @torch.inference_mode()
    def __call__(self, inputs: Tensors) -> Tensors:
        hidden = torch.from_numpy(np.ascontiguousarray(inputs[HIDDEN]))
        values = (each.numpy() for each in self._module(hidden))
        return dict(zip(self._answers, values, strict=True))


class TorchBackend:
    """PyTorch on the CPU in float32."""

    def __init__(self, model: ReducedModel) -> None:
        bound_primitive_cache()
        self._model = model.eval()
        self._segments = {segment_name(segment.index): segment for segment in model.segments}
        self._dropped = {dropped_name(index): index for index in range(len(model.projections))}
        self._states = {states_name(layers): layers for layers in range(model.spec.num_layers + 1)}
        self._outputs = tuple(output.name for output in task_of(model.spec).outputs)
        self.graph = OncePerKey(self._open)
        self.padding = NO_PADDING
        self.call_tokens = MOST_TOKENS
        self.arrays: Arrays = HOST
        self.description = {
            "backend": "torch",
            "version": torch.__version__,
            "provider": "cpu",
            "precision": "fp32",
            "threads": str(torch.get_num_threads()),
        }

    def _open(self, name: str) -> TorchGraph | TorchTokens:
        if name in self._dropped:
            return TorchTokens(DroppedModule(self._model, self._dropped[name]), self._outputs)
        if name == HEAD:
            return TorchTokens(HeadModule(self._model), self._outputs)
        if name in self._states:
            return TorchGraph(StatesModule(self._model, self._states[name]), ())
        if name == DENSE:
            module = dense_module(self._model)
        else:
            module = segment_module(self._model, self._segments[name])
        if module.segment.is_last:
            return TorchGraph(module, self._outputs if module.answers else ())
        return TorchGraph(module, AT_EXIT if self._model.exits else (KEEP_LOGIT,))


def open_backend(bundle: Bundle, options: BackendOptions) -> TorchBackend:
    """Open ``bundle`` with PyTorch."""
    set_threads(options.threads)
    return TorchBackend(load_model(bundle))


def load_model(bundle: Bundle) -> ReducedModel:
    """The model that a bundle was made of, from the weights that its graphs share."""
    manifest = bundle.manifest
    model = ReducedModel(manifest.encoder, manifest.reduction)
    with bundle.reading(WEIGHTS) as path:
        stored = read_safetensors(path)
    model.load_state_dict(
        {
            name.removesuffix(TRANSPOSED): tensor.T if name.endswith(TRANSPOSED) else tensor
            for name, tensor in stored.items()
            if not name.startswith((HALVED, QUANTIZED))
        }
    )
    return model.eval()


def set_threads(threads: int) -> None:
    """Give PyTorch so many threads; 0 leaves it as it is.

    Raises:
        ConfigError: out of range.
    """
    require_whole("threads", threads, 0, MOST_THREADS)
    if threads:
        torch.set_num_threads(threads)
