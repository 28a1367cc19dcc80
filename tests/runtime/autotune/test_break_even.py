"""Short texts in the dense graph: what they are answered, and how their length is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from priced_backend import PricedBackend

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.errors import BundleError, ConfigError
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.runtime.autotune import break_even
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.runtime.loading import load
from trbert_deploy.runtime.pipeline import Pipeline
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
    monkeypatch.setattr(
        break_even, "is_dense_faster", lambda chain, rows, clock: len(rows[0]) in losing
    )
    assert break_even.measure(Bundle.open(pipeline.path), pipeline.chain) == expected


class Clocked:
    """A chain on a clock of its own; ``seconds(dense, call, length)`` is what a row takes."""

    def __init__(self, seconds: Callable[[bool, int, int], float]) -> None:
        self.now = 0.0
        self.calls = {True: 0, False: 0}
        self._seconds = seconds

    def run(self, rows: list[TokenRow]) -> list[RowResult]:
        return self._run(rows, dense=False)

    def run_dense(self, rows: list[TokenRow]) -> list[RowResult]:
        return self._run(rows, dense=True)

    def _run(self, rows: list[TokenRow], dense: bool) -> list[RowResult]:
        (row,) = rows
        self.now += self._seconds(dense, self.calls[dense], len(row))
        self.calls[dense] += 1
        return []

    def clock(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("start", "token", "expected"),
    [  # the dense model starts at once and takes 8 for a token: start / (8 - token) tokens are even
        (0.0, 4.0, 0),
        (63.0, 4.0, 0),
        (64.0, 4.0, 0),  # at 16 tokens both take the same
        (65.0, 4.0, 24),
        (96.0, 4.0, 24),
        (97.0, 4.0, 32),
        (128.0, 4.0, 32),
        (129.0, 4.0, 48),
        (193.0, 4.0, 64),
        (256.0, 4.0, 64),
        (257.0, 4.0, 65),
        (0.0, 9.0, 65),
        (9.0, 7.0, 0),
        (17.0, 7.0, 24),
    ],
)
def test_break_even_is_where_the_costs_meet(
    tiny_bundle: Path, start: float, token: float, expected: int
) -> None:
    def seconds(dense: bool, call: int, length: int) -> float:
        return 8.0 * length if dense else start + token * length

    chain = Clocked(seconds)
    bundle = Bundle.open(tiny_bundle)
    steps: list[str] = []
    tell = lambda step, done, total: steps.append(f"{step} {done}/{total}")  # noqa: E731
    assert break_even.measure(bundle, chain, chain.clock, tell) == expected  # type: ignore[arg-type]
    assert steps[0] == "measure texts of 16 tokens 0/5" and steps[-1] == "measure texts 5/5"


def compare(seconds: Callable[[bool, int, int], float], bundle: Path) -> bool:
    chain = Clocked(seconds)
    rows = sample_rows(Bundle.open(bundle), [16], break_even.ROWS)
    assert len(rows) == 4 and break_even.PASSES == 4 and break_even.ROUNDS == 5
    return break_even.is_dense_faster(chain, rows, chain.clock)  # type: ignore[arg-type]


@pytest.mark.parametrize(("reduced", "dense"), [(1.0, 2.0), (2.0, 1.0), (1.0, 1.0)])
def test_the_faster_is_the_one_that_takes_less_time(
    tiny_bundle: Path, reduced: float, dense: float
) -> None:
    found = compare(lambda is_dense, call, length: dense if is_dense else reduced, tiny_bundle)
    assert found == (dense < reduced)


@pytest.mark.parametrize("disturbed", [True, False])
def test_a_disturbance_decides_nothing(tiny_bundle: Path, disturbed: bool) -> None:
    """One call in four takes a thousand times as long, of the model that is faster otherwise."""

    def seconds(dense: bool, call: int, length: int) -> float:
        if dense is not disturbed:
            return 2.0
        return 1000.0 if call % 4 == 3 else 1.0

    assert compare(seconds, tiny_bundle) is disturbed


def test_all_rows_count(tiny_bundle: Path) -> None:
    """The chain is slow on the first of four rows alone."""

    def seconds(dense: bool, call: int, length: int) -> float:
        return 2.0 if dense else 9.0 if length == 17 else 1.0

    chain = Clocked(seconds)
    rows = sample_rows(Bundle.open(tiny_bundle), [16], break_even.ROWS)
    (slow,) = sample_rows(Bundle.open(tiny_bundle), [17], 1)
    found = break_even.is_dense_faster(chain, [slow, *rows[1:]], chain.clock)  # type: ignore[arg-type]
    assert found is False


def test_the_first_pass_of_a_turn_does_not_count(tiny_bundle: Path) -> None:
    """With it the dense model's median would be 2, less than the chain's."""

    def seconds(dense: bool, call: int, length: int) -> float:
        number = call // 4 % 4  # of the pass, over four rows
        return (0.0, 1.0, 3.0, 3.0)[number] if dense else 2.5

    assert compare(seconds, tiny_bundle) is False


def below_of(losing: list[int]) -> int:
    """The length after the last one that loses before two in a row win; 65 for all of them."""
    following = {16: 24, 24: 32, 32: 48, 48: 64, 64: 65}
    below = wins = 0
    for length, after in following.items():
        wins = 0 if length in losing else wins + 1
        if wins == 2:
            break
        if length in losing:
            below = after
    return below


def test_the_real_models_are_compared(pipeline: Pipeline) -> None:
    """On the bundle's own texts, at a known price of each graph's call and of each token."""
    bundle = Bundle.open(pipeline.path)
    found = {}
    for call in (0.0, 5.0, 10.0, 20.0, 30.0, 50.0, 1000.0):
        losing = []
        for length in (16, 24, 32, 48, 64):
            prices = []
            for row in sample_rows(bundle, [length], break_even.ROWS):
                ((first, second),) = [result.kept for result in pipeline.chain.run([row])]
                reduced = 3 * call + len(row) + len(first) + 2 * len(second)
                prices.append((call + 4 * len(row), reduced))
            dense, reduced = np.median(prices, axis=0)
            if dense < reduced:
                losing.append(length)
        backend = PricedBackend(pipeline.chain.backend, call, token=1.0)
        chain = Chain(backend, pipeline.reduction, 4)
        found[call] = break_even.measure(bundle, chain, backend.clock)
        assert found[call] == below_of(losing)
    assert len(set(found.values())) >= 4 and {0, 65} <= set(found.values())


def test_auto_measures_once(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(break_even, "measure", lambda *_, **__: 24)
    found = load(tiny_bundle, threads=1, dense_below="auto", note=said.append)
    assert found.chain.dense_below == 24
    assert said == ["texts of fewer than 24 tokens are faster dense here, and keep all of them"]
    monkeypatch.setattr(break_even, "measure", lambda *_, **__: 1 / 0)
    assert (
        load(tiny_bundle, threads=1).at(OperatingPoint(dense_below="auto")).chain.dense_below == 24
    )
    with pytest.raises(ZeroDivisionError):  # other rules, other latencies
        load(tiny_bundle, threads=1, dense_below="auto", threshold=0.9)


def test_where_nothing_is_faster_dense_all_texts_are_reduced(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(break_even, "measure", lambda *_, **__: 0)
    found = load(tiny_bundle, threads=1, dense_below="auto", note=said.append)
    assert found.chain.dense_below == 0
    assert said == ["no text is faster dense here"]


def test_what_was_measured_on_random_tokens_says_so(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_bundle(tiny_checkpoint, tmp_path / "bundle", samples=False)
    monkeypatch.setattr(break_even, "measure", lambda *_, **__: 24)
    said: list[str] = []
    load(tmp_path / "bundle", threads=1, dense_below="auto", note=said.append)
    (line,) = said
    assert line.endswith(
        "all of them; measured on random tokens, for the bundle has no sample texts"
    )


def test_it_stays_where_the_dial_does_not_name_it(tiny_bundle: Path) -> None:
    loaded = load(tiny_bundle, threads=1, dense_below=20)
    assert loaded.at(OperatingPoint(threshold=0.1)).chain.dense_below == 20
    assert loaded.at(OperatingPoint(dense_below=0)).chain.dense_below == 0


@pytest.mark.parametrize("wrong", [-1, 2.5, "never", 10**20])
def test_it_is_a_number_of_tokens(tiny_bundle: Path, wrong: object) -> None:
    message = f"dense_below is {wrong}: expected a whole number from 0 to 2,147,483,647, or auto"
    with pytest.raises(ConfigError, match=message):
        load(tiny_bundle, dense_below=wrong)  # type: ignore[arg-type]


def test_a_checkpoint_is_not_measured(tiny_checkpoint: Path) -> None:
    from trbert_deploy.modeling.checkpoints.pipeline import load_checkpoint_pipeline

    with pytest.raises(BundleError, match="is not a bundle"):
        load_checkpoint_pipeline(tiny_checkpoint).at(OperatingPoint(dense_below="auto"))
