"""A task and its head that are registered from outside the package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from conftest import make_texts, tiny_model, tiny_spec
from numpy.typing import NDArray
from torch import Tensor, nn

from trbert_deploy import load
from trbert_deploy.config import EncoderSpec, ReductionConfig
from trbert_deploy.errors import ConfigError, OutputError
from trbert_deploy.exporters.checks.parity import compare_chains
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.modeling.checkpoints import checkpoint as checkpoints
from trbert_deploy.modeling.checkpoints.checkpoint import Checkpoint
from trbert_deploy.modeling.heads.head import Head, Outputs
from trbert_deploy.modeling.heads.registry import HEADS, build_head, register_head
from trbert_deploy.modeling.layouts.layout import Layout
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.torch_backend import TorchBackend
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.tasks.columns import Columns, text_of
from trbert_deploy.tasks.examples import Example, Text
from trbert_deploy.tasks.outputs import Output, require_numbers
from trbert_deploy.tasks.predictions import Prediction
from trbert_deploy.tasks.registry import TASKS, register_task, task_of
from trbert_deploy.tasks.task import NewHead, Task


@dataclass(frozen=True, kw_only=True)
class Mark(Prediction):
    mark: float


class Marking(Task):
    """A number for each text."""

    name = "text-marking"
    outputs = (Output("mark", "row"),)
    measure = "closeness"
    columns = ("mark",)

    @classmethod
    def of(cls, spec: EncoderSpec) -> Self:
        return cls()

    @classmethod
    def read(cls, record: Mapping[str, Any], name: str, columns: Columns) -> Example:
        mark = None if columns.label is None else record.get(columns.label)
        return Example(text_of(record, name, columns), mark, name)

    @classmethod
    def new_head(cls, examples: Sequence[Example]) -> NewHead:
        return NewHead(cls.name)

    def require_names(self, labels: Sequence[str], where: str) -> None:
        assert not labels

    def protected(self, encoding: Any) -> NDArray[np.bool_]:
        """The first token and the last one."""
        keep = super().protected(encoding)
        keep[-1] = True
        return keep

    def decode(self, outputs: Any, encoding: Any, text: Text = "") -> Mark:
        require_numbers(outputs)
        return Mark(num_tokens=len(encoding.ids), mark=float(outputs["mark"][0]))

    def summary(self, prediction: Prediction) -> str:
        return f"{prediction.mark:.1f}"  # type: ignore[attr-defined]

    def agreement(self, one: Any, other: Any) -> float:
        return float(abs(one["mark"][0] - other["mark"][0]) < 0.1)

    def divergence(self, teacher: Any, student: Any) -> float:
        return float(abs(teacher["mark"][0] - student["mark"][0]))

    def targets(self, examples: Sequence[Example], encodings: Sequence[Any] = ()) -> Any:
        return np.array([example.target for example in examples])

    def no_target(self, encoding: Any = None) -> float:
        return -1.0

    def metrics(self, outputs: Sequence[Any], targets: NDArray[Any]) -> dict[str, float]:
        return {"closeness": self.measured(self.statistics(outputs, targets))}

    def statistics(self, outputs: Sequence[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
        marks = np.array([each["mark"][0] for each in outputs])
        return 1.0 / (1.0 + np.abs(marks - targets))[:, None]


class MarkingHead(Head):
    """A linear layer over the mean of the last states."""

    task = Marking.name

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mark = nn.Linear(width, 1)

    @classmethod
    def build(cls, spec: EncoderSpec) -> Self:
        return cls(spec.hidden_size)

    def forward(self, hidden: Tensor, layout: Layout) -> dict[str, Tensor]:
        return {"mark": self.mark(layout.mean(hidden)).float()}

    def loss(
        self, outputs: Outputs, target: Tensor | None, teacher: Outputs | None = None
    ) -> Tensor:
        wanted = teacher["mark"] if teacher is not None else target
        assert wanted is not None
        return (outputs["mark"] - wanted).square().squeeze(-1)

    def path_loss(self, outputs: Outputs, target: Tensor | None, teacher: Outputs) -> Tensor:
        return (outputs["mark"].view(-1, len(teacher["mark"])) - teacher["mark"][:, 0]).square()

    def correct(self, outputs: Outputs, target: Tensor) -> Tensor:
        return 1.0 / (1.0 + (outputs["mark"][:, 0] - target).abs())

    def answers(self, outputs: Outputs, like: Tensor) -> Tensor:
        return outputs["mark"][:, 0]

    def has_target(self, target: Tensor) -> Tensor:
        return target >= 0


@pytest.fixture
def marking() -> Iterator[EncoderSpec]:
    register_task(Marking)
    register_head(MarkingHead)
    yield tiny_spec(task=Marking.name, labels=())
    del TASKS[Marking.name, ""], HEADS[Marking.name, ""]


def test_its_model_is_exported_and_served(
    marking: EncoderSpec, tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = ReducedModel(marking, ReductionConfig.parse("1,2")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    texts = tuple(row["text"] for row in make_texts(8))
    made = Checkpoint(model, tokenizer_dir, 64, samples=texts)
    monkeypatch.setattr("trbert_deploy.exporters.export.load_checkpoint", lambda path, task: made)
    export_bundle(tmp_path, tmp_path / "bundle")
    reference = Chain(TorchBackend(model), model.reduction, 4)
    for backend in ("onnxruntime", "openvino"):
        pipeline = load(tmp_path / "bundle", backend, threads=1, precision="fp32")
        rows = pipeline.tokenize(texts)
        compare_chains(pipeline.task, reference, pipeline.chain, rows)
        predictions = pipeline(texts, return_kept=True)
        for prediction, row, result in zip(predictions, rows, reference.run(rows), strict=True):
            assert prediction.mark == pytest.approx(result.outputs["mark"][0], abs=1e-4)
            assert all(cut.positions[-1] == len(row) - 1 for cut in prediction.kept)
    assert set(predictions[0].to_json()) == {"mark", "num_tokens", "kept"}
    assert checkpoints.SAMPLES in {path.name for path in (tmp_path / "bundle").iterdir()}


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown task .poetry.: expected one of text-classif"):
        task_of(tiny_spec(task="poetry"))
    with pytest.raises(ConfigError, match="no head answers the task poetry"):
        build_head(tiny_spec(task="poetry"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_no_answer(tiny_bundle: Path, value: float) -> None:
    task = task_of(tiny_model().spec)
    (encoding,) = load(tiny_bundle, threads=1).tokenizer.encode(["a film"])
    with pytest.raises(OutputError, match=r"logits hold (nan|inf): expected finite numbers"):
        task.decode({"logits": np.array([0.0, value], np.float32)}, encoding)
