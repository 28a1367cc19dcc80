"""The chain: rows stay independent, survivors are what the rule says, backends agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conftest import CheckpointMaker, tiny_model

from trbert_deploy.batching import NO_PADDING, Padding
from trbert_deploy.bounds import MOST_TOKENS
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.config import ReductionConfig
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.modeling.torch_backend import TorchBackend
from trbert_deploy.runtime.backends.backend import Backend, BackendOptions, Graph, Tensors
from trbert_deploy.runtime.backends.registry import open_backend
from trbert_deploy.runtime.chain import MAX_BATCH_TOKENS, Chain, Timing
from trbert_deploy.runtime.scorers import PolicyScorer
from trbert_deploy.runtime.token_state import RowResult, TokenRow, TokenState
from trbert_deploy.selection.operating_point import OperatingPoint
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
    together = torch_chain(cuts, padding=Padding(share=1.0)).run(rows)
    alone = [torch_chain(cuts).run([row])[0] for row in rows]
    assert_same(together, alone)


def test_a_row_is_the_same_alone_and_among_others_in_onnx_runtime(onnx_chain: ChainMaker) -> None:
    chain = onnx_chain("1,2")
    padded = Chain(chain.backend, ReductionConfig.parse("1,2"), 4, padding=Padding(share=1.0))
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

    padding = NO_PADDING
    call_tokens = MOST_TOKENS

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.arrays = backend.arrays
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


def test_two_rows_are_not_padded_either() -> None:
    backend = Watching(torch_backend("none"))
    Chain(backend, ReductionConfig(), 4).run(rows_of(6, 3))
    assert backend.calls == [("dense", (1, 3)), ("dense", (1, 6))]


def test_a_backend_that_loses_rows_is_found() -> None:
    class Losing(Watching):
        def graph(self, name: str) -> Graph:
            graph = self._backend.graph(name)

            def call(inputs: Tensors) -> Tensors:
                outputs = graph(inputs)
                return {**outputs, "hidden_out": outputs["hidden_out"][:1]}

            call.inputs = graph.inputs  # type: ignore[attr-defined]
            return call  # type: ignore[return-value]

    with pytest.raises(ValueError, match="argument 2 is longer than"):
        Chain(Losing(torch_backend("1,2")), ReductionConfig.parse("1,2"), 4).run(rows_of(6, 6))


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


def test_time_is_counted_once_and_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(1000))  # every look at the clock takes one
    monkeypatch.setattr("trbert_deploy.runtime.chain.time.perf_counter", lambda: next(seconds))
    timing = Timing()
    chain = torch_chain("1,2", dense_below=10)
    chain.run(rows_of(20), timing)
    once = {"segment_0": 1, "segment_1": 1, "segment_2": 1}
    assert (timing.graph_seconds, timing.total_seconds) == (once, 7)
    assert timing.outside_share == pytest.approx(4 / 7)
    chain.run(rows_of(20), timing)
    assert timing.graph_seconds == dict.fromkeys(once, 2) and timing.total_seconds == 14
    chain.run(rows_of(5, 20), timing)
    assert timing.graph_seconds == {**dict.fromkeys(once, 3), "dense": 1}
    assert timing.total_seconds == 14 + 3 + 7


class Backwards:
    """Scores tokens by their place, the last ones highest."""

    def keep_logits(self, cut: int, batch: Sequence[TokenState], outputs: Tensors) -> np.ndarray:
        longest = max(map(len, batch))
        return np.tile(np.arange(longest, dtype=np.float32) + cut, (len(batch), 1))


HALF = SelectionRule("ratio", 0.5)


def test_another_scorer_takes_the_place_of_the_policy() -> None:
    limits = {"max_batch_tokens": 70, "padding": Padding(share=0.3), "dense_below": 30}
    reduction = ReductionConfig.parse("1,2").with_rules((HALF, HALF))
    own = Chain(torch_backend("1,2"), reduction, 4, **limits)
    scored = own.scored_by(Backwards())
    assert (scored.backend, scored.reduction) == (own.backend, own.reduction)
    assert (scored.max_batch_tokens, scored.padding) == (70, Padding(share=0.3))
    assert scored.dense_below == 0  # whatever the number of tokens
    (result,) = scored.run(rows_of(8))
    assert [kept.tolist() for kept in result.kept] == [[0, 5, 6, 7], [0, 7]]


def test_another_operating_point_changes_nothing_else() -> None:
    limits = {"max_batch_tokens": 70, "padding": Padding(share=0.3), "dense_below": 5}
    scorer = Backwards()
    own = Chain(torch_backend("1,2"), ReductionConfig.parse("1,2"), 4, **limits, scorer=scorer)
    other = own.at(OperatingPoint(ratio=0.5))
    assert [cut.rule for cut in other.reduction.cuts] == [HALF, HALF]
    assert (other.backend, other.scorer) == (own.backend, scorer)
    assert (other.max_batch_tokens, other.padding, other.dense_below) == (70, Padding(share=0.3), 5)
    assert [len(kept) for kept in other.run(rows_of(8))[0].kept] == [4, 2]
    assert own.at(OperatingPoint(dense_below=9)).dense_below == 9
    assert own.at(OperatingPoint(dense_below=0)).dense_below == 0
    assert own.at(OperatingPoint(dense_below="auto")).dense_below == 5


def test_what_is_not_said_is_the_backends_and_the_policys() -> None:
    backend = Watching(torch_backend("1,2"))
    backend.padding = Padding(share=0.25)
    chain = Chain(backend, ReductionConfig.parse("1,2"), 4)
    assert (chain.padding, chain.max_batch_tokens) == (Padding(share=0.25), MAX_BATCH_TOKENS)
    assert chain.dense_below == 0 and isinstance(chain.scorer, PolicyScorer)
    assert Chain(backend, ReductionConfig.parse("1,2"), 4, padding=NO_PADDING).padding == NO_PADDING
    assert Chain(backend, ReductionConfig(), 4, dense_below=9).dense_below == 0  # it is dense


@pytest.mark.parametrize(("tokens_of_a_call", "rows_of_a_call"), [(40, 4), (1, 1), (10**6, 9)])
def test_calls_are_as_large_as_the_backend_likes(
    tokens_of_a_call: int, rows_of_a_call: int
) -> None:
    backend = Watching(torch_backend("1,2"))
    backend.call_tokens = tokens_of_a_call
    rows = rows_of(*[10] * 9)
    results = Chain(backend, ReductionConfig.parse("1,2"), 4).run(rows)
    first = [shape[0] for name, shape in backend.calls if name == "segment_0"]
    assert max(first) == rows_of_a_call and sum(first) == len(rows)
    for one, other in zip(results, torch_chain("1,2").run(rows), strict=True):
        assert all(map(np.array_equal, one.kept, other.kept))


@pytest.mark.parametrize(
    ("cuts", "below", "names"),
    [
        ("1,2", 0, ["segment_0", "segment_1", "segment_2"]),
        ("1,2", 5, ["segment_0", "segment_1", "segment_2", "dense"]),
        ("0.5", 0, ["segment_0", "segment_1"]),
        ("none", 5, ["dense"]),
    ],
)
def test_what_rows_will_pass_is_opened(cuts: str, below: int, names: list[str]) -> None:
    opened: list[str] = []

    class Opening(Watching):
        def graph(self, name: str) -> Graph:
            opened.append(name)
            return super().graph(name)

    Chain(Opening(torch_backend(cuts)), ReductionConfig.parse(cuts), 4, dense_below=below).open()
    assert opened == names


def test_padded_rows_come_with_a_mask_and_without_changing_their_kind() -> None:
    given: list[dict[str, np.ndarray]] = []

    class Noting(Watching):
        def graph(self, name: str) -> Graph:
            graph = self._backend.graph(name)

            def call(inputs: Tensors) -> Tensors:
                given.append(dict(inputs))
                return graph(inputs)

            call.inputs = graph.inputs  # type: ignore[attr-defined]
            return call  # type: ignore[return-value]

    reduction = ReductionConfig.parse("1").with_rules((HALF,))
    rows = rows_of(6, 3)
    Chain(Noting(torch_backend("1")), reduction, 4, padding=Padding(share=1.0)).run(rows)
    first, second = given
    mask = [[True] * 3 + [False] * 3, [True] * 6]
    assert first["attention_mask"].tolist() == mask and first["attention_mask"].dtype == bool
    assert first["input_ids"].tolist() == [[*rows[1].input_ids, 0, 0, 0], [*rows[0].input_ids]]
    assert first["input_ids"].dtype == first["token_type_ids"].dtype == np.int64
    assert second["attention_mask"].tolist() == [[True, True, False], [True, True, True]]
    assert second["hidden"].dtype == np.float32 and not second["hidden"][0, 2].any()
    given.clear()
    Chain(Noting(torch_backend("1")), reduction, 4, padding=Padding(share=1.0)).run(rows_of(6, 6))
    assert all("attention_mask" not in inputs for inputs in given)


def test_timing_tells_graphs_from_the_rest() -> None:
    timing, dense = Timing(), Timing()
    torch_chain("1,2").run(rows_of(20), timing)
    torch_chain("1,2").run_dense(rows_of(20), dense)
    assert list(timing.graph_seconds) == ["segment_0", "segment_1", "segment_2"]
    assert list(dense.graph_seconds) == ["dense"]
    for spent in (timing, dense):
        assert 0.0 < sum(spent.graph_seconds.values()) < spent.total_seconds
        assert 0.0 < spent.outside_share < 1.0
