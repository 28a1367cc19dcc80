"""The chain: rows stay independent, survivors are what the rule says, backends agree."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conftest import CheckpointMaker, tiny_model

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.config import ReductionConfig
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.modeling.torch_backend import TorchBackend
from trbert_deploy.runtime.backends.backend import Backend, BackendOptions, Graph, Tensors
from trbert_deploy.runtime.backends.registry import open_backend
from trbert_deploy.runtime.chain import Chain, Timing
from trbert_deploy.runtime.token_state import RowResult, TokenRow
from trbert_deploy.selection.rules import SelectionRule

#: Cuts before any layer, inside one, next to each other; one, two, three of them, and none.
ALL_CUTS = ("1,2", "0.5", "0", "none", "0,0.5,2", "3.5")


def rows_of(*lengths: int, seed: int = 0) -> list[TokenRow]:
    rng = np.random.default_rng(seed)
    return [
        TokenRow(rng.integers(5, 256, length), rng.integers(0, 2, length)) for length in lengths
    ]


LENGTHS = (17, 3, 64, 1, 40, 17, 2, 16)


@cache
def torch_backend(cuts: str) -> Backend:
    return TorchBackend(tiny_model(cuts))


def torch_chain(cuts: str, **options: float) -> Chain:
    return Chain(torch_backend(cuts), ReductionConfig.parse(cuts), 4, **options)


ChainMaker = Callable[[str], Chain]


@pytest.fixture(scope="module")
def onnx_chain(
    tiny_bundle: Path, make_checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory
) -> ChainMaker:
    """The same models as ``torch_chain`` has, exported."""

    @cache
    def make(cuts: str) -> Chain:
        path = tiny_bundle
        if cuts != "1,2":
            path = tmp_path_factory.mktemp("chain") / "bundle"
            export_bundle(make_checkpoint(cuts), path)
        bundle = Bundle.open(path)
        backend = open_backend("onnxruntime", bundle, BackendOptions(threads=1))
        return Chain(backend, bundle.manifest.reduction, 4)

    return make


def assert_same(ours: list[RowResult], theirs: list[RowResult], tolerance: float = 1e-5) -> None:
    for one, other in zip(ours, theirs, strict=True):
        for kept, expected in zip(one.kept, other.kept, strict=True):
            assert np.array_equal(kept, expected)
        scale = max(1.0, float(np.abs(other.outputs["logits"]).max()))
        assert np.abs(one.outputs["logits"] - other.outputs["logits"]).max() <= tolerance * scale


@pytest.mark.parametrize("cuts", ALL_CUTS)
def test_a_row_is_the_same_alone_and_among_others(cuts: str) -> None:
    rows = rows_of(*LENGTHS)
    # Anything may share a batch, so that rows are padded up to 64 times their length.
    together = torch_chain(cuts, max_padding=1.0).run(rows)
    alone = [torch_chain(cuts).run([row])[0] for row in rows]
    assert_same(together, alone)


def test_a_row_is_the_same_alone_and_among_others_in_onnx_runtime(onnx_chain: ChainMaker) -> None:
    chain = onnx_chain("1,2")
    padded = Chain(chain.backend, ReductionConfig.parse("1,2"), 4, max_padding=1.0)
    rows = rows_of(*LENGTHS)
    assert_same(padded.run(rows), [chain.run([row])[0] for row in rows])


@pytest.mark.parametrize("cuts", ["1,2", "0,0.5,2", "none"])
def test_onnx_runtime_agrees_with_pytorch(cuts: str, onnx_chain: ChainMaker) -> None:
    rows = rows_of(*LENGTHS, *LENGTHS)
    assert_same(onnx_chain(cuts).run(rows), torch_chain(cuts).run(rows), 1e-4)
    assert_same(onnx_chain(cuts).run_dense(rows), torch_chain(cuts).run_dense(rows), 1e-4)


@pytest.mark.parametrize("cuts", ALL_CUTS)
def test_survivors_shrink_in_text_order(cuts: str) -> None:
    rows = rows_of(*LENGTHS)
    dropped = 0
    for row, result in zip(rows, torch_chain(cuts).run(rows), strict=True):
        before = np.arange(len(row))
        assert len(result.kept) == len(ReductionConfig.parse(cuts).cuts)
        for kept in result.kept:
            assert kept.dtype == np.int64
            assert kept[0] == 0 and (np.diff(kept) > 0).all()
            assert np.isin(kept, before).all()
            dropped += len(before) - len(kept)
            before = kept
    assert (dropped > 0) == (cuts != "none")


def test_the_order_of_rows_is_kept() -> None:
    rows = rows_of(*LENGTHS)
    order = np.random.default_rng(1).permutation(len(rows))
    chain = torch_chain("1,2")
    results = chain.run(rows)
    assert_same(chain.run([rows[place] for place in order]), [results[place] for place in order])


@pytest.mark.parametrize("max_batch_tokens", [1, 40, 10**6])
def test_the_size_of_batches_does_not_matter(max_batch_tokens: int) -> None:
    rows = rows_of(*LENGTHS)
    small = torch_chain("1,2", max_batch_tokens=max_batch_tokens)
    assert_same(small.run(rows), torch_chain("1,2").run(rows))
    assert_same(small.run_dense(rows), torch_chain("1,2").run_dense(rows))


@pytest.mark.parametrize("cuts", ALL_CUTS)
def test_keeping_everything_is_the_dense_model(cuts: str) -> None:
    reduction = ReductionConfig.parse(cuts).at_threshold(0.0)
    chain = Chain(torch_backend(cuts), reduction, 4)
    rows = rows_of(*LENGTHS)
    for row, result, dense in zip(rows, chain.run(rows), chain.run_dense(rows), strict=True):
        assert all(len(kept) == len(row) for kept in result.kept)
        assert dense.kept == ()
        assert np.allclose(result.outputs["logits"], dense.outputs["logits"], atol=1e-4)


@pytest.mark.parametrize("cuts", ALL_CUTS)
@pytest.mark.parametrize("below", [1, 17, 18, 65])
def test_short_rows_are_the_dense_models(cuts: str, below: int) -> None:
    rows = rows_of(*LENGTHS)
    chain = torch_chain(cuts, dense_below=below)
    pairs = zip(torch_chain(cuts).run(rows), chain.run_dense(rows), strict=True)
    for row, result, (reduced, dense) in zip(rows, chain.run(rows), pairs, strict=True):
        if len(row) < below:
            everything = (np.arange(len(row)),) * len(reduced.kept)
            assert_same([result], [RowResult(dense.outputs, everything)])
        else:
            assert_same([result], [reduced])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (SelectionRule("ratio", 0.3), [20, 6]),
        (SelectionRule("budget", 10), [10, 10]),
        (SelectionRule("ratio", 0.3, round_to=16), [32, 16]),
        (SelectionRule("budget", 500), [64, 64]),
        (SelectionRule("threshold", 1.0), [1, 1]),
    ],
)
def test_other_rules_on_the_same_weights(rule: SelectionRule, expected: list[int]) -> None:
    reduction = ReductionConfig.parse("1,2").with_rules((rule, rule))
    chain = Chain(torch_backend("1,2"), reduction, 4)
    (result,) = chain.run(rows_of(64))
    assert [len(kept) for kept in result.kept] == expected
    assert_same(chain.run(rows_of(64, 30, 5)), [chain.run([row])[0] for row in rows_of(64, 30, 5)])


def test_rows_that_keep_few_tokens_meet_rows_that_keep_many() -> None:
    """Rounded survivors put rows of one length in one batch, whatever their first lengths."""
    rule = SelectionRule("budget", 4)
    chain = Chain(torch_backend("1,2"), ReductionConfig.parse("1,2").with_rules((rule, rule)), 4)
    timing = Timing()
    results = chain.run(rows_of(*[20] * 5), timing)
    assert {len(kept) for result in results for kept in result.kept} == {4}
    assert set(timing.graph_seconds) == {"segment_0", "segment_1", "segment_2"}


class Watching:
    """A backend that notes what its graphs are given."""

    max_padding = 0.0

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.description = backend.description
        self.calls: list[tuple[str, tuple[int, ...]]] = []

    def graph(self, name: str) -> Graph:
        return WatchedGraph(name, self._backend.graph(name), self.calls)


class WatchedGraph:
    def __init__(self, name: str, graph: Graph, calls: list[tuple[str, tuple[int, ...]]]) -> None:
        self.name, self.graph, self.calls, self.inputs = name, graph, calls, graph.inputs

    def __call__(self, inputs: Tensors) -> Tensors:
        assert "attention_mask" not in inputs
        self.calls.append((self.name, next(iter(inputs.values())).shape[:2]))
        return self.graph(inputs)


def test_rows_go_on_with_those_that_kept_as_many() -> None:
    rule = SelectionRule("ratio", 0.5, round_to=8)
    reduction = ReductionConfig.parse("1,2").with_rules((rule, rule))
    backend = Watching(torch_backend("1,2"))
    rows = rows_of(64, 40, 33, 40, 60, 34)
    Chain(backend, reduction, 4).run(rows)
    assert backend.calls == [
        *[("segment_0", shape) for shape in ((1, 33), (1, 34), (2, 40), (1, 60), (1, 64))],
        *[("segment_1", shape) for shape in ((4, 24), (2, 32))],
        ("segment_2", (6, 16)),
    ]


def test_so_many_tokens_are_on_their_way_at_a_time() -> None:
    backend = Watching(torch_backend("1,2"))
    rows = rows_of(10, 30, 10, 20, 50)
    results = Chain(backend, ReductionConfig.parse("1,2"), 4, max_batch_tokens=40).run(rows)
    assert_same(results, torch_chain("1,2").run(rows))
    firsts = [shape for name, shape in backend.calls if name == "segment_0"]
    assert firsts == [(2, 10), (1, 20), (1, 30), (1, 50)]
    order = [name for name, _ in backend.calls]
    assert order.index("segment_2") < len(order) - order[::-1].index("segment_0")


@pytest.mark.parametrize("cuts", ["1,2", "none"])
def test_no_rows_no_results(cuts: str) -> None:
    assert torch_chain(cuts).run([]) == []
    assert torch_chain(cuts).run_dense([]) == []


def test_timing_tells_graphs_from_the_rest() -> None:
    timing, dense = Timing(), Timing()
    torch_chain("1,2").run(rows_of(20), timing)
    torch_chain("1,2").run_dense(rows_of(20), dense)
    assert list(timing.graph_seconds) == ["segment_0", "segment_1", "segment_2"]
    assert list(dense.graph_seconds) == ["dense"]
    for spent in (timing, dense):
        assert 0.0 < sum(spent.graph_seconds.values()) < spent.total_seconds
        assert 0.0 < spent.outside_share < 1.0
