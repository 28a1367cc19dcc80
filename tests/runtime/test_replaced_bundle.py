"""A bundle that is replaced while it is in use is never answered from by halves."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from conftest import CheckpointMaker, make_texts

from trbert_deploy.batching import Padding
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import TOKENIZER, WEIGHTS
from trbert_deploy.errors import BundleError
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.runtime.backends.backend import BackendOptions
from trbert_deploy.runtime.backends.registry import open_backend
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.runtime.loading import load
from trbert_deploy.runtime.pipeline import Pipeline

TEXTS = [row["text"] for row in make_texts(8, seed=5)]
BACKENDS = ("onnxruntime", "openvino", "torch")


@pytest.fixture(scope="module")
def other_bundle(
    make_checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A bundle of the same shape with other weights."""
    path = tmp_path_factory.mktemp("other") / "bundle"
    export_bundle(make_checkpoint(seed=7), path)
    return path


def swap_directory(live: Path, other: Path) -> None:
    """Put a copy of ``other`` in the place of ``live``, as an export does."""
    live.rename(live.with_name("retired"))
    shutil.copytree(other, live)


def overwrite_files(live: Path, other: Path) -> None:
    """Copy the files of ``other`` over those of ``live``."""
    for file in other.iterdir():
        staged = live / "staged"
        shutil.copyfile(file, staged)
        staged.replace(live / file.name)


def scores(pipeline: Pipeline, **options: bool) -> np.ndarray:
    return np.array([list(answer.scores.values()) for answer in pipeline(TEXTS, **options)])


@pytest.mark.parametrize("replace", [swap_directory, overwrite_files])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_was_loaded_goes_on_to_answer(
    own_bundle: Path, other_bundle: Path, backend: str, replace: Callable[[Path, Path], None]
) -> None:
    untouched = load(own_bundle, backend, threads=1)
    before = scores(untouched)
    pipeline = load(own_bundle, backend, threads=1)  # nothing was asked of it yet
    replace(own_bundle, other_bundle)
    assert np.array_equal(scores(pipeline), before)
    after = scores(load(own_bundle, backend, threads=1))
    assert np.abs(after - before).max() > 1e-3


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_graph_that_is_opened_later_is_of_the_same_bundle(
    own_bundle: Path, other_bundle: Path, backend: str
) -> None:
    pipeline = load(own_bundle, backend, threads=1)
    kept = load(own_bundle, backend, threads=1)
    dense = scores(kept, dense=True)
    swap_directory(own_bundle, other_bundle)
    with pytest.raises(BundleError, match="was replaced since the bundle was opened: load it"):
        pipeline(TEXTS, dense=True)
    assert np.array_equal(scores(kept, dense=True), dense)


@pytest.mark.parametrize("backend", BACKENDS)
def test_files_replaced_behind_the_check_are_not_opened(
    own_bundle: Path, other_bundle: Path, backend: str
) -> None:
    bundle = Bundle.open(own_bundle)
    swap_directory(own_bundle, other_bundle)
    with pytest.raises(BundleError, match="was replaced since"):
        load(bundle, backend, threads=1)


def test_weights_that_change_while_a_graph_opens_are_noticed(
    own_bundle: Path, other_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = onnxruntime.InferenceSession

    def slow(*arguments: object, **options: object) -> object:
        session = original(*arguments, **options)
        shutil.copyfile(other_bundle / WEIGHTS, own_bundle / WEIGHTS)
        return session

    bundle = Bundle.open(own_bundle)
    monkeypatch.setattr(onnxruntime, "InferenceSession", slow)
    with pytest.raises(BundleError, match=f"{WEIGHTS} was replaced since"):
        load(bundle, threads=1)


def test_a_file_that_was_only_touched_is_the_same(own_bundle: Path) -> None:
    bundle = Bundle.open(own_bundle)
    for file in own_bundle.iterdir():
        os.utime(file, (0, 0))
    with bundle.reading(TOKENIZER, WEIGHTS) as path:
        assert path == own_bundle / TOKENIZER
    shutil.copyfile(own_bundle / WEIGHTS, own_bundle / "again")
    (own_bundle / "again").replace(own_bundle / WEIGHTS)
    load(bundle, threads=1)


def test_a_file_that_is_gone_was_replaced(own_bundle: Path) -> None:
    bundle = Bundle.open(own_bundle)
    (own_bundle / TOKENIZER).unlink()
    with (
        pytest.raises(BundleError, match=f"{TOKENIZER} was replaced"),
        bundle.reading(TOKENIZER) as path,
    ):
        path.read_bytes()


def test_what_is_measured_later_is_measured_on_the_same_bundle(
    own_bundle: Path, other_bundle: Path
) -> None:
    pipeline = load(own_bundle, threads=1)
    swap_directory(own_bundle, other_bundle)
    assert pipeline.require_bundle().digest == Bundle.open(own_bundle.with_name("retired")).digest


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_first_calls_from_several_threads_open_each_graph_once(
    tiny_bundle: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(tiny_bundle)
    runner = open_backend(backend, bundle, BackendOptions(1))
    opened: list[str] = []
    reading = Bundle.reading

    def recorded(self: Bundle, *names: str) -> object:
        opened.append(names[0])
        return reading(self, *names)

    monkeypatch.setattr(Bundle, "reading", recorded)
    manifest = bundle.manifest
    chain = Chain(
        runner, manifest.reduction, manifest.encoder.num_layers, padding=Padding(share=1.0)
    )
    rows = load(tiny_bundle, "torch", threads=1).tokenize(TEXTS)
    opened.clear()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: [*chain.run(rows), *chain.run_dense(rows)], range(8)))
    assert len(opened) == len(set(opened)) == 2 * len(manifest.graphs)  # with a mask and without
    for answer in answers[1:]:
        for one, other in zip(answer, answers[0], strict=True):
            assert np.allclose(one.outputs["logits"], other.outputs["logits"], atol=1e-5)


def test_a_bundle_that_is_replaced_while_it_is_loaded_is_loaded_anew(
    own_bundle: Path, other_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    original = onnxruntime.InferenceSession

    def slow(*arguments: object, **options: object) -> object:
        session = original(*arguments, **options)
        opened.append(str(arguments[0]))
        if len(opened) == 1:
            swap_directory(own_bundle, other_bundle)
        return session

    monkeypatch.setattr(onnxruntime, "InferenceSession", slow)
    pipeline = load(own_bundle, threads=1)
    assert pipeline.require_bundle().digest == Bundle.open(other_bundle).digest
    assert np.array_equal(scores(pipeline), scores(load(other_bundle, threads=1)))
