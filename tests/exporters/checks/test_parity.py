"""The gates: each planted fault is found, and what rounding alone does passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_model

from trbert_deploy.batching import NO_PADDING
from trbert_deploy.bounds import MOST_TOKENS
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import DENSE, HIDDEN_OUT, KEEP_LOGIT, segment_name
from trbert_deploy.errors import ParityError
from trbert_deploy.exporters.checks import half_precision
from trbert_deploy.exporters.checks.half_precision import compare_precision
from trbert_deploy.exporters.checks.limits import LIMITS
from trbert_deploy.exporters.checks.parity import columns_of, compare_chains, compare_graphs
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.modeling.torch_backend import TorchBackend
from trbert_deploy.runtime.arrays import HOST, Arrays
from trbert_deploy.runtime.backends.backend import Backend, BackendOptions, Graph, Tensors
from trbert_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.runtime.token_state import TokenRow, fates_apart, survivor_agreement
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.tasks.registry import task_of
from trbert_deploy.tasks.task import Task

#: (inputs, outputs of a graph) -> other outputs.
Alteration = Callable[[Tensors, Tensors], Tensors]


class AlteredGraph:
    def __init__(self, graph: Graph, alteration: Alteration) -> None:
        self.inputs = graph.inputs
        self._graph = graph
        self._alteration = alteration

    def __call__(self, inputs: Tensors) -> Tensors:
        outputs = {name: value.copy() for name, value in self._graph(inputs).items()}
        return {**outputs, **self._alteration(inputs, outputs)}


class Altered:
    """A backend with a fault in some of its graphs."""

    padding = NO_PADDING
    call_tokens = MOST_TOKENS
    arrays: Arrays = HOST
    description: dict[str, str] = {}

    def __init__(self, backend: Backend, faults: dict[str, Alteration]) -> None:
        self._backend = backend
        self._faults = faults

    def graph(self, name: str) -> Graph:
        graph = self._backend.graph(name)
        return AlteredGraph(graph, self._faults[name]) if name in self._faults else graph


@pytest.fixture(scope="module")
def model() -> ReducedModel:
    return tiny_model()


@pytest.fixture(scope="module")
def task(model: ReducedModel) -> Task:
    return task_of(model.spec)


def chain_of(
    model: ReducedModel,
    faults: dict[str, Alteration] | None = None,
    point: OperatingPoint = OperatingPoint(),
) -> Chain:
    backend = Altered(TorchBackend(model), faults or {})
    return Chain(backend, model.reduction.at(point), model.spec.num_layers)


def rows_of(length: int, count: int) -> list[TokenRow]:
    ids = np.random.default_rng(length).integers(0, 256, (count, length))
    return [TokenRow(row, np.zeros_like(row)) for row in ids]


def flip_last(inputs: Tensors, outputs: Tensors) -> Tensors:
    """The last token's keep logit with the other sign."""
    outputs[KEEP_LOGIT][:, -1] *= -1.0
    return outputs


def swap_labels(inputs: Tensors, outputs: Tensors) -> Tensors:
    return {"logits": outputs["logits"][:, ::-1]}


def favour(inputs: Tensors, outputs: Tensors) -> Tensors:
    """The first label's logit is one too large."""
    return {"logits": outputs["logits"] + np.float32([1.0, 0.0])}


def answer(*logits: float) -> Alteration:
    """Every row gets the same logits."""
    return lambda inputs, outputs: {
        "logits": np.tile(np.float32(logits), (len(outputs["logits"]), 1))
    }


def score(value: float) -> Alteration:
    """Every token gets the same keep logit."""
    return lambda inputs, outputs: {KEEP_LOGIT: np.full_like(outputs[KEEP_LOGIT], value)}


def score_last(value: float, length: int) -> Alteration:
    """The last token of rows of one length gets this keep logit."""

    def alter(inputs: Tensors, outputs: Tensors) -> Tensors:
        if outputs[KEEP_LOGIT].shape[1] == length:
            outputs[KEEP_LOGIT][:, -1] = value
        return outputs

    return alter


def test_the_same_chain_passes(model: ReducedModel, task: Task) -> None:
    parity = compare_chains(task, chain_of(model), chain_of(model), rows_of(20, 4))
    assert (parity.rows, parity.rows_apart) == (4, 0)
    assert parity.keep_logit_difference == parity.max_output_difference == 0.0
    assert parity.dense_output_difference == 0.0
    assert parity.survivor_agreement == parity.answer_agreement == 1.0


def test_rows_with_other_survivors_and_other_answers_are_not_left_out(
    model: ReducedModel, task: Task
) -> None:
    """Few tokens meet another fate, but in every row, and every answer is another."""
    rows = rows_of(64, 4)
    faults = {segment_name(1): flip_last, segment_name(2): swap_labels}
    ours, theirs = chain_of(model), chain_of(model, faults)
    pairs = list(zip(ours.run(rows), theirs.run(rows), strict=True))
    assert all(fates_apart(one, other) for one, other in pairs)
    assert survivor_agreement(rows, *zip(*pairs, strict=True)) > 0.99
    with pytest.raises(ParityError, match=r"chain: keep logits differ .* tolerance"):
        compare_chains(task, ours, theirs, rows)
    wide = replace(LIMITS["fp32"], logit_tolerance=np.inf)
    with pytest.raises(ParityError, match=r"chain: 4 of 4 rows have other survivors .* most 5%"):
        compare_chains(task, ours, theirs, rows, wide)
    with pytest.raises(ParityError, match=r"only 0\.00% of the answers are the same as in PyTorch"):
        compare_chains(task, ours, theirs, rows, replace(wide, rows_apart=1.0))


def test_a_token_on_the_boundary_may_meet_another_fate(model: ReducedModel, task: Task) -> None:
    rows = [row for length in range(10, 50) for row in rows_of(length, 1)]
    ours, theirs = (
        chain_of(model, {segment_name(0): score_last(value, 40)}) for value in (5e-6, -5e-6)
    )
    parity = compare_chains(task, ours, theirs, rows)
    assert parity.rows_apart == 1
    assert 0.999 < parity.survivor_agreement < 1.0
    assert 0 < parity.keep_logit_difference < 2e-5


def test_too_many_rows_on_the_boundary_are_refused(model: ReducedModel, task: Task) -> None:
    rows = [*rows_of(40, 3), *(row for length in range(10, 35) for row in rows_of(length, 1))]
    ours, theirs = (
        chain_of(model, {segment_name(0): score_last(value, 40)}) for value in (5e-6, -5e-6)
    )
    with pytest.raises(ParityError, match=r"chain: 3 of 28 rows have other survivors"):
        compare_chains(task, ours, theirs, rows)


@pytest.mark.parametrize("value", [0.1, 1e-3])
def test_a_token_farther_from_the_boundary_may_not(
    model: ReducedModel, task: Task, value: float
) -> None:
    rows = [row for length in range(10, 50) for row in rows_of(length, 1)]
    ours, theirs = (
        chain_of(model, {segment_name(0): score_last(each, 40)}) for each in (value, -5e-6)
    )
    with pytest.raises(ParityError, match="keep logits differ"):
        compare_chains(task, ours, theirs, rows)


def test_survivors_that_no_keep_logit_explains_are_refused(model: ReducedModel, task: Task) -> None:
    """The same graphs under another rule: keep logits agree, a few survivors do not."""
    rows = rows_of(64, 4)
    graph, columns = TorchBackend(model).graph(segment_name(0)), columns_of(rows)
    first = graph({name: columns[name] for name in graph.inputs})[KEEP_LOGIT]
    least = np.sort(first[first > 0])[:2].mean()  # between the least two that pass
    point = OperatingPoint(threshold=float(1 / (1 + np.exp(-least))))
    ours, theirs = chain_of(model), chain_of(model, point=point)
    assert 0.99 < survivor_agreement(rows, ours.run(rows), theirs.run(rows)) < 1.0
    with pytest.raises(ParityError, match=r"survivors of row \d at cut \d are not those that the"):
        compare_chains(task, ours, theirs, rows)


def test_answers_that_turn_within_the_tolerance_are_refused(
    model: ReducedModel, task: Task
) -> None:
    ours, theirs = (
        chain_of(model, {segment_name(2): answer(*logits)}) for logits in ((5e-5, 0), (0, 5e-5))
    )
    with pytest.raises(ParityError, match=r"only 0\.00% of the answers are the same as in PyTorch"):
        compare_chains(task, ours, theirs, rows_of(20, 4))


def test_the_dense_model_is_compared(model: ReducedModel, task: Task) -> None:
    theirs = chain_of(model, {DENSE: swap_labels})
    with pytest.raises(ParityError, match="outputs with no token removed differ from PyTorch"):
        compare_chains(task, chain_of(model), theirs, rows_of(20, 4))


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({segment_name(0): score(-1.0)}, "keep logits differ from float32"),
        ({segment_name(2): favour}, "outputs differ from float32"),
        ({DENSE: favour}, "outputs with no token removed differ from float32"),
    ],
)
def test_every_precision_has_limits_that_refuse_what_is_broken(
    model: ReducedModel,
    task: Task,
    precision: str,
    faults: dict[str, Alteration],
    message: str,
) -> None:
    limits = LIMITS[precision]
    assert max(limits.tolerance, limits.logit_tolerance) < 1.0
    assert min(limits.survivor_agreement, limits.answer_agreement) >= 0.9
    with pytest.raises(ParityError, match=f"chain of mine: {message} by .*; do so$"):
        compare_chains(
            task,
            chain_of(model),
            chain_of(model, faults),
            rows_of(20, 4),
            limits,
            name="chain of mine",
            reference_name="float32",
            advice="do so",
        )


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(
    ("sound", "faulty", "message"),
    [
        (
            {segment_name(0): score(0.005)},
            {segment_name(0): score(-0.005)},
            "graph segment_0: only .* of the tokens have the same fate as in float32",
        ),
        (
            {segment_name(2): answer(0.005, 0)},
            {segment_name(2): answer(0, 0.005)},
            r"chain in .*: only 0\.00% of the answers are the same as in float32, .*; build with",
        ),
    ],
)
def test_half_precision_that_turns_close_calls_is_refused(
    tiny_bundle: Path,
    precision: str,
    sound: dict[str, Alteration],
    faulty: dict[str, Alteration],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All graphs are within the tolerance, and all results are numbers."""

    def opens(faults: dict[str, Alteration]) -> Callable[..., Backend]:
        return lambda bundle, *_: Altered(OnnxRuntimeBackend(bundle, BackendOptions()), faults)

    monkeypatch.setattr(half_precision, "OnnxRuntimeBackend", opens(sound))
    monkeypatch.setattr(half_precision, "RoundedBackend", opens(faulty))
    with pytest.raises(ParityError, match=message):
        compare_precision(Bundle.open(tiny_bundle), {}, precision)


def test_graphs_whose_survivors_differ_within_the_tolerance_are_refused(
    model: ReducedModel,
) -> None:
    sides = [
        Altered(TorchBackend(model), {segment_name(0): score(value)}) for value in (5e-5, -5e-5)
    ]
    with pytest.raises(ParityError, match=r"graph segment_0: only .* have the same fate"):
        list(compare_graphs(*sides, model.spec, model.reduction, rows_of, [(2, 20)]))


def test_graphs_are_compared_padded(model: ReducedModel) -> None:
    """A graph that pays no heed to the mask."""

    def unmask(inputs: Tensors, outputs: Tensors) -> Tensors:
        blind = {name: value for name, value in inputs.items() if name != "attention_mask"}
        return {HIDDEN_OUT: TorchBackend(model).graph(segment_name(1))(blind)[HIDDEN_OUT]}

    sides = TorchBackend(model), Altered(TorchBackend(model), {segment_name(1): unmask})
    with pytest.raises(ParityError, match="graph segment_1, batch 2, length 20: hidden_out"):
        list(compare_graphs(*sides, model.spec, model.reduction, rows_of, [(2, 20)]))
    assert list(compare_graphs(*sides, model.spec, model.reduction, rows_of, [(1, 20)]))


def test_as_many_labels_as_tokens(model: ReducedModel) -> None:
    """Outputs of rows [B, C] are compared whole, though padded tokens [B, S] are not."""

    def alter(inputs: Tensors, outputs: Tensors) -> Tensors:
        if "attention_mask" in inputs:
            outputs["logits"][1:, 1] += 0.5
        return outputs

    sides = TorchBackend(model), Altered(TorchBackend(model), {segment_name(2): alter})
    with pytest.raises(ParityError, match="graph segment_2, batch 2, length 2: logits differs"):
        list(compare_graphs(*sides, model.spec, model.reduction, rows_of, [(2, 2)]))
