"""What ``peers.py`` compares: one checkpoint's dense model under other runtimes, and our chains.

Every contender answers rows of tokens with logits, from the weights of the same checkpoint. Peers
get rows padded to the longest one of the batch, as their users would have them; a runtime's own
defaults hold where nothing else is said here.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from trbert_deploy.errors import ConfigError, ParityError, TrbertError
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.runtime.loading import load
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.tasks.text_classification import LOGITS

#: Rows -> logits [B, C] float32.
Answer = Callable[[Sequence[TokenRow]], NDArray[np.float32]]
INPUTS = ("input_ids", "token_type_ids", "attention_mask")


class Unavailable(Exception):
    """A contender cannot be made here; the message says why."""


@dataclass(frozen=True)
class Workshop:
    """What the contenders are made from.

    Attributes:
        checkpoint: directory that trbert-deploy train wrote.
        scratch: directory for graphs.
        threads: of every runtime.
        sample: rows of real text, for calibration.
    """

    checkpoint: Path
    scratch: Path
    threads: int
    sample: Sequence[TokenRow]

    def transformer(self, attention: str) -> nn.Module:
        """The dense model in Transformers, by one of its implementations of attention."""
        transformers.utils.logging.set_verbosity_error()  # our policies are no part of it
        transformers.utils.logging.disable_progress_bar()
        model = AutoModelForSequenceClassification.from_pretrained(
            self.checkpoint, attn_implementation=attention
        )
        return _Logits(model).eval()

    @cached_property
    def plain_graph(self) -> Path:
        """The plain export: attention by its single operations, in any opset."""
        return self._export("eager", 20)

    @cached_property
    def attention_graph(self) -> Path:
        """The export with ONNX's own operation for attention."""
        return self._export("sdpa", 23)

    @cached_property
    def bundle(self) -> Path:
        path = self.scratch / "bundle"
        try:
            export_bundle(self.checkpoint, path, int8=True)
        except ParityError:  # 8-bit weights agree too little
            export_bundle(self.checkpoint, path)
        return path

    def _export(self, attention: str, opset: int) -> Path:
        path = self.scratch / f"{attention}-{opset}.onnx"
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        batch, length = torch.export.Dim.DYNAMIC, torch.export.Dim.DYNAMIC
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                self.transformer(attention),
                tuple(torch.ones(2, 24, dtype=torch.int64) for _ in INPUTS),
                path,
                input_names=INPUTS,
                output_names=[LOGITS],
                dynamic_shapes=tuple({0: batch, 1: length} for _ in INPUTS),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
        return path


class _Logits(nn.Module):
    """A Transformers classifier that takes and gives tensors alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.model(
            input_ids=input_ids, token_type_ids=token_type_ids, attention_mask=attention_mask
        ).logits
        return logits


def padded(rows: Sequence[TokenRow]) -> dict[str, NDArray[np.int64]]:
    """Rows as arrays [B, S], padded with zeros to the longest."""
    arrays = {name: np.zeros((len(rows), max(map(len, rows))), np.int64) for name in INPUTS}
    for place, row in enumerate(rows):
        values = (row.input_ids, row.token_type_ids, 1)
        for array, value in zip(arrays.values(), values, strict=True):
            array[place, : len(row)] = value
    return arrays


def _torch(shop: Workshop, dtype: torch.dtype, compiled: bool = False) -> Answer:
    if compiled and not (shutil.which("g++") or shutil.which("clang++")):
        raise Unavailable("torch.compile needs a C++ compiler")
    model = shop.transformer("sdpa").to(dtype)
    run: Callable[..., Tensor] = torch.compile(model, dynamic=True) if compiled else model

    def answer(rows: Sequence[TokenRow]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits = run(*(torch.from_numpy(array) for array in padded(rows).values()))
        return logits.float().numpy()

    return answer


def run_in_onnxruntime(graph: Path, threads: int) -> Answer:
    """A dense graph with inputs of Transformers' names and the output ``logits``.

    Raises:
        ConfigError: no such graph.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as problem:  # ONNX Runtime raises classes of its own, derived from it
        raise ConfigError(f"ONNX Runtime cannot load {graph}: {problem}") from problem
    names = {each.name for each in session.get_inputs()}
    outputs = [each.name for each in session.get_outputs()]
    if not names <= set(INPUTS) or LOGITS not in outputs:
        raise ConfigError(
            f"{graph} takes {', '.join(sorted(names))} and gives {', '.join(outputs)}: expected "
            f"some of {', '.join(INPUTS)}, and logits"
        )

    def answer(rows: Sequence[TokenRow]) -> NDArray[np.float32]:
        inputs = {name: array for name, array in padded(rows).items() if name in names}
        logits: NDArray[np.float32] = session.run([LOGITS], inputs)[0]
        return logits

    return answer


def _optimized(shop: Workshop) -> Answer:
    from onnxruntime.transformers.optimizer import optimize_model

    config = shop.transformer("eager").model.config
    graph = optimize_model(
        str(shop.plain_graph), "bert", config.num_attention_heads, config.hidden_size
    )
    path = shop.scratch / "optimized.onnx"
    graph.save_model_to_file(str(path))
    return run_in_onnxruntime(path, shop.threads)


def _int8(shop: Workshop) -> Answer:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = shop.scratch / "int8.onnx"
    quantize_dynamic(
        shop.plain_graph,
        path,
        weight_type=QuantType.QInt8,
        per_channel=True,
        extra_options={"DefaultTensorType": 1},
    )
    return run_in_onnxruntime(path, shop.threads)


def _openvino(shop: Workshop, precision: str) -> Answer:
    try:
        import openvino
    except ModuleNotFoundError:
        raise Unavailable("OpenVINO is not installed") from None
    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise Unavailable("this processor does not compute in bfloat16")
    model = core.read_model(shop.attention_graph)
    settings = {
        "INFERENCE_NUM_THREADS": shop.threads,
        "INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(precision, precision),
    }
    if precision == "int8":
        model = _calibrated(model, shop.sample)
        settings["INFERENCE_PRECISION_HINT"] = "f32"  # of what is not 8-bit
    settings |= {"NUM_STREAMS": 1}
    request = core.compile_model(model, "CPU", settings).create_infer_request()

    def answer(rows: Sequence[TokenRow]) -> NDArray[np.float32]:
        (logits,) = request.infer(padded(rows), share_inputs=True).values()
        return np.array(logits, np.float32)

    return answer


def _calibrated(model: Any, sample: Sequence[TokenRow]) -> Any:
    try:
        import nncf
    except ModuleNotFoundError:
        raise Unavailable("nncf is not installed") from None
    nncf.set_log_level(logging.ERROR)
    rows = nncf.Dataset([padded([row]) for row in sample])
    kind = nncf.ModelType.TRANSFORMER
    return nncf.quantize(model, rows, model_type=kind, subset_size=len(sample))


def _ours(
    shop: Workshop, backend: str, precision: str, *, dense: bool = False, exits: bool = False
) -> Answer:
    # Survivors in multiples of 16, since OpenVINO computes so many tokens at a time.
    round_to = 16 if backend == "openvino" else None
    try:
        pipeline = load(
            shop.bundle, backend, threads=shop.threads, precision=precision, round_to=round_to
        )
    except TrbertError as problem:
        raise Unavailable(str(problem)) from None
    if exits and not pipeline.reduction.rows_leave:
        raise Unavailable("the checkpoint has no exits at which a row may leave")
    if not exits:
        pipeline = pipeline.to_the_end()

    def answer(rows: Sequence[TokenRow]) -> NDArray[np.float32]:
        return np.stack([result.outputs[LOGITS] for result in pipeline.run(rows, dense=dense)])

    return answer


BACKENDS = {"ONNX Runtime": "onnxruntime", "OpenVINO": "openvino"}
FORMS = (
    ("ONNX Runtime", "fp32"),
    ("ONNX Runtime", "int8"),
    ("OpenVINO", "fp32"),
    ("OpenVINO", "int8"),
    ("OpenVINO", "bf16"),
)
#: Kind -> how ``_ours`` runs it.
KINDS: dict[str, dict[str, bool]] = {
    "dense": {"dense": True},
    "reduced": {},
    "reduced with exits": {"exits": True},
}
#: Name -> how it is made. The reduced ones drop tokens; all others do the same work.
CONTENDERS: dict[str, Callable[[Workshop], Answer]] = {
    "PyTorch fp32, sdpa": lambda shop: _torch(shop, torch.float32),
    "PyTorch bf16, sdpa": lambda shop: _torch(shop, torch.bfloat16),
    "PyTorch fp32, torch.compile": lambda shop: _torch(shop, torch.float32, compiled=True),
    "PyTorch bf16, torch.compile": lambda shop: _torch(shop, torch.bfloat16, compiled=True),
    "ONNX Runtime fp32, plain export": lambda shop: run_in_onnxruntime(
        shop.plain_graph, shop.threads
    ),
    "ONNX Runtime fp32, its optimizer for transformers": _optimized,
    "ONNX Runtime fp32, Attention operation": lambda shop: run_in_onnxruntime(
        shop.attention_graph, shop.threads
    ),
    "ONNX Runtime int8, dynamic": _int8,
    "OpenVINO fp32": lambda shop: _openvino(shop, "fp32"),
    "OpenVINO bf16": lambda shop: _openvino(shop, "bf16"),
    "OpenVINO int8, calibrated": lambda shop: _openvino(shop, "int8"),
    **{
        f"ours, {kind}, {shown} {precision}": partial(
            _ours, backend=BACKENDS[shown], precision=precision, **choice
        )
        for shown, precision in FORMS
        for kind, choice in KINDS.items()
    },
}
#: What the others are measured against: what most users run.
BASELINE = "ONNX Runtime fp32, plain export"
