"""Bundles that are replaced while a service answers from them."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import overload
import pytest
from conftest import make_texts, tiny_model
from overload import Service

from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.modeling.checkpoints.checkpoint import Checkpoint, save_checkpoint

SOON = 60.0
BODY = {"inputs": make_texts(1, seed=5)[0]["text"]}


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    """A bundle of the same task and labels, with other weights."""
    place = tmp_path_factory.mktemp("other")
    save_checkpoint(Checkpoint(tiny_model("none", seed=7), tokenizer_dir, 64), place / "ckpt")
    export_bundle(place / "ckpt", place / "bundle")
    return place / "bundle"


@contextmanager
def serving(bundle: Path, *options: str) -> Iterator[tuple[Service, httpx.Client]]:
    """The command, and a client of it."""
    with (
        overload.service(bundle, *options) as service,
        httpx.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=SOON) as client,
    ):
        yield service, client


def replace(bundle: Path, other: Path) -> None:
    """Put another bundle into a bundle's place, as an export does."""
    staged = bundle.with_name("staged")
    shutil.copytree(other, staged)
    old = bundle.with_name("old")
    bundle.rename(old)
    staged.rename(bundle)
    shutil.rmtree(old)


def score(client: httpx.Client) -> float:
    answer = client.post("/predict", json=BODY)
    assert answer.status_code == 200, answer.text
    return round(float(answer.json()[0]["score"]), 4)  # rows of others shift it by less


@pytest.mark.parametrize("watch", [False, True])
def test_a_replaced_bundle_is_taken_over_and_no_request_is_lost(
    tiny_bundle: Path, other_bundle: Path, tmp_path: Path, watch: bool
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    with serving(bundle, *(["--watch"] if watch else [])) as (service, client):
        old = score(client)
        scores: list[float] = []
        ends = threading.Event()

        def ask() -> None:
            while not ends.is_set():
                scores.append(score(client))

        askers = [threading.Thread(target=ask) for _ in range(4)]
        for asker in askers:
            asker.start()
        try:
            replace(bundle, other_bundle)
            if not watch:
                service.process.send_signal(signal.SIGHUP)
            stop = time.monotonic() + SOON
            while scores[-1:] in ([], [old]):
                assert time.monotonic() < stop, "it was never taken over"
                time.sleep(0.01)
        finally:
            ends.set()
            for asker in askers:
                asker.join(SOON)
        assert len(set(scores)) == 2  # the old one's answers and the new one's, nothing between
        assert score(client) != old


def test_what_does_not_load_is_not_taken(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    with serving(bundle) as (service, client):
        old = score(client)
        (bundle / "weights.safetensors").unlink()  # what is mapped into memory is not written to
        (bundle / "weights.safetensors").write_bytes(b"torn")
        service.process.send_signal(signal.SIGHUP)
        assert "weights.safetensors was altered or truncated" in service.told("stays")
        assert score(client) == old


def test_a_bundle_that_comes_file_by_file_is_taken_when_it_is_whole(
    tiny_bundle: Path, other_bundle: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    with serving(bundle, "--watch") as (service, client):
        old = score(client)
        bundle.rename(tmp_path / "old")
        bundle.mkdir()
        shutil.copy(other_bundle / "manifest.json", bundle)
        assert "is missing" in service.told("stays")
        shutil.copytree(other_bundle, bundle, dirs_exist_ok=True)
        service.told("answers now")
        assert score(client) != old


def test_a_bundle_for_something_else_is_not_taken(
    tiny_bundle: Path, tmp_path: Path, tokenizer_dir: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    model = tiny_model("none", labels=("bad", "middling", "good"))
    save_checkpoint(Checkpoint(model, tokenizer_dir, 64), tmp_path / "ckpt")
    export_bundle(tmp_path / "ckpt", tmp_path / "three")
    with serving(bundle) as (service, client):
        old = score(client)
        replace(bundle, tmp_path / "three")
        service.process.send_signal(signal.SIGHUP)
        assert "other labels" in service.told("stays")
        assert score(client) == old
