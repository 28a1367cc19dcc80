"""The backend that runs whole rows on a GPU: what the numpy chain gives, on any device."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from modeling.test_device_chain import LENGTHS, assert_same, device, model_of, rows_of

import trbert_deploy
from trbert_deploy.errors import ConfigError, DeviceError
from trbert_deploy.modeling.cuda_backend import CudaBackend
from trbert_deploy.modeling.torch_backend import TorchBackend
from trbert_deploy.runtime.backends.backend import RowsBackend
from trbert_deploy.runtime.chain import ALL_GRAPHS, Chain, Timing
from trbert_deploy.runtime.scorers import ReplayedScorer
from trbert_deploy.selection.operating_point import OperatingPoint

__all__ = ["device"]  # the fixture


def chains(cuts: str, device: str, **options: int) -> tuple[Chain, Chain]:
    """The numpy chain, and the one on the device."""
    model = model_of(cuts)
    backends = TorchBackend(model), CudaBackend(model, torch.device(device), "fp32")
    ours, theirs = (
        Chain(backend, model.reduction, model.spec.num_layers, **options) for backend in backends
    )
    return ours, theirs


@pytest.mark.parametrize("cuts", ["1,2", "0.5", "none"])
def test_as_the_numpy_chain(cuts: str, device: str) -> None:
    ours, theirs = chains(cuts, device)
    rows = rows_of(*LENGTHS)
    theirs.open()
    for _ in range(3):
        assert_same(ours.run(rows), theirs.run(rows))
        assert_same(ours.run_dense(rows), theirs.run_dense(rows))
    assert theirs.run([]) == []


def test_at_every_operating_point(device: str) -> None:
    ours, theirs = chains("1,2", device)
    rows = rows_of(*LENGTHS, seed=1)
    points = [
        OperatingPoint(threshold=0.4),
        OperatingPoint(ratio=0.3),
        OperatingPoint(max_tokens=6),
        OperatingPoint(dense_below=17),
        OperatingPoint(threshold=0.6, round_to=8),
        OperatingPoint(threshold=0.4),
    ]
    for _ in range(2):
        for point in points:
            assert_same(ours.at(point).run(rows), theirs.at(point).run(rows))
    assert isinstance(theirs.backend, CudaBackend)
    assert len(theirs.backend._points) <= CudaBackend.MOST_POINTS


def test_windows_and_time(device: str) -> None:
    ours, theirs = chains("1,2", device, max_batch_tokens=40)
    rows, timing = rows_of(*LENGTHS), Timing()
    assert_same(ours.run(rows), theirs.run(rows, timing))
    assert timing.graph_seconds == {ALL_GRAPHS: timing.total_seconds}
    assert timing.outside_share == 0.0


def test_threads_take_turns(device: str) -> None:
    ours, theirs = chains("1,2", device)
    cases = [rows_of(*LENGTHS, seed=seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for expected, received in zip(
            map(ours.run, cases), pool.map(theirs.run, cases), strict=True
        ):
            assert_same(expected, received)


def test_policies_alone_choose(device: str) -> None:
    _, theirs = chains("1,2", device)
    rows = rows_of(9)
    scored = theirs.scored_by(ReplayedScorer.of(rows, [[np.ones(9, bool)] * 2]))
    with pytest.raises(ConfigError, match="by the policies alone"):
        scored.run(rows)
    assert len(scored.run_dense(rows)) == 1


def test_what_runs_graphs_runs_no_rows() -> None:
    assert not isinstance(TorchBackend(model_of("1,2")), RowsBackend)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_said(tiny_bundle: Path) -> None:
    with pytest.raises(DeviceError, match="backend cuda needs"):
        trbert_deploy.load(tiny_bundle, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_bundle_on_the_gpu(tiny_bundle: Path, precision: str) -> None:
    texts = ["a wonderful film", "the film is dreadful and boring " * 5, "superb"]
    expected = trbert_deploy.load(tiny_bundle, "torch")(texts, return_kept=True)
    pipeline = trbert_deploy.load(tiny_bundle, "cuda", precision=precision)
    for _ in range(3):
        received = pipeline(texts, return_kept=True)
        for ours, theirs in zip(expected, received, strict=True):
            assert ours.num_tokens == theirs.num_tokens
            if precision == "fp32":
                assert ours.kept == theirs.kept
            np.testing.assert_allclose(
                list(theirs.scores.values()), list(ours.scores.values()), atol=2e-2
            )
