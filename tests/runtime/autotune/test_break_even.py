"""Short texts in the dense graph: what they are answered, and how their length is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.errors import BundleError, ConfigError
from trbert_deploy.runtime.autotune import break_even
from trbert_deploy.runtime.pipeline import Pipeline, load
from trbert_deploy.runtime.samples import sample_rows
from trbert_deploy.runtime.token_state import RowResult, TokenRow
from trbert_deploy.selection.operating_point import OperatingPoint

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def pipeline(tiny_bundle: Path) -> Pipeline:
    return load(tiny_bundle, threads=1)


@pytest.mark.parametrize(
    ("losing", "expected"),
    [
        ((), 0),
        ((16,), 24),
        ((16, 32), 48),  # a single win does not end the search
        ((16, 48, 64), 24),  # two do: the rest is not measured
        ((16, 24, 32, 48, 64), 65),  # the tiny bundle takes 64 tokens: all rows are dense
    ],
)
def test_the_search_goes_up_until_the_chain_wins_twice(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, losing: tuple[int, ...], expected: int
) -> None:
    monkeypatch.setattr(break_even, "is_dense_faster", lambda chain, rows: len(rows[0]) in losing)
    assert break_even.measure(Bundle.open(pipeline.path), pipeline.chain) == expected


class Clocked:
    """A chain on a clock of its own: milliseconds that single rows take."""

    def __init__(self, reduced: float, dense: float) -> None:
        self.now = 0.0
        self._reduced, self._dense = reduced, dense

    def run(self, rows: list[TokenRow]) -> list[RowResult]:
        assert len(rows) == 1
        self.now += self._reduced
        return []

    def run_dense(self, rows: list[TokenRow]) -> list[RowResult]:
        assert len(rows) == 1
        self.now += self._dense
        return []


@pytest.mark.parametrize(("reduced", "dense"), [(1.0, 2.0), (2.0, 1.0), (1.0, 1.0)])
def test_the_faster_is_the_one_that_takes_less_time(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, reduced: float, dense: float
) -> None:
    chain = Clocked(reduced, dense)
    monkeypatch.setattr(break_even.time, "perf_counter", lambda: chain.now)
    rows = sample_rows(Bundle.open(pipeline.path), [16], 2)
    assert break_even.is_dense_faster(chain, rows) == (dense < reduced)  # type: ignore[arg-type]


def test_the_real_models_are_compared(pipeline: Pipeline) -> None:
    assert break_even.measure(Bundle.open(pipeline.path), pipeline.chain) in {0, 24, 32, 48, 64, 65}


def test_auto_measures_once(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(break_even, "measure", lambda bundle, chain: 24)
    found = load(tiny_bundle, threads=1, dense_below="auto", note=said.append)
    assert found.chain.dense_below == 24
    assert said == ["texts of fewer than 24 tokens are faster dense here, and keep all of them"]
    monkeypatch.setattr(break_even, "measure", lambda bundle, chain: 1 / 0)
    assert (
        load(tiny_bundle, threads=1).at(OperatingPoint(dense_below="auto")).chain.dense_below == 24
    )
    with pytest.raises(ZeroDivisionError):  # other rules, other latencies
        load(tiny_bundle, threads=1, dense_below="auto", threshold=0.9)


def test_where_nothing_is_faster_dense_all_texts_are_reduced(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(break_even, "measure", lambda bundle, chain: 0)
    found = load(tiny_bundle, threads=1, dense_below="auto", note=said.append)
    assert found.chain.dense_below == 0
    assert said == ["no text is faster dense here"]


def test_it_stays_where_the_dial_does_not_name_it(tiny_bundle: Path) -> None:
    loaded = load(tiny_bundle, threads=1, dense_below=20)
    assert loaded.at(OperatingPoint(threshold=0.1)).chain.dense_below == 20
    assert loaded.at(OperatingPoint(dense_below=0)).chain.dense_below == 0


@pytest.mark.parametrize("wrong", [-1, 2.5, "never"])
def test_it_is_a_number_of_tokens(tiny_bundle: Path, wrong: object) -> None:
    message = f"dense_below is {wrong}: expected 0 or more tokens, or auto"
    with pytest.raises(ConfigError, match=message):
        load(tiny_bundle, dense_below=wrong)  # type: ignore[arg-type]


def test_a_checkpoint_is_not_measured(tiny_checkpoint: Path) -> None:
    from trbert_deploy.modeling.checkpoints.pipeline import load_checkpoint_pipeline

    with pytest.raises(BundleError, match="is not a bundle"):
        load_checkpoint_pipeline(tiny_checkpoint).at(OperatingPoint(dense_below="auto"))
