"""What a measured time depends on: each of it makes another key."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.runtime.autotune import conditions as module
from trbert_deploy.runtime.autotune.conditions import chain_conditions, conditions
from trbert_deploy.runtime.backends.registry import BACKENDS
from trbert_deploy.runtime.backends.tensorrt.engine_set import ENGINE_MANIFEST
from trbert_deploy.runtime.loading import load


def key(path: Path, threads: int = 1, engines: bool = True) -> dict[str, Any]:
    bundle = Bundle.open(path)
    return conditions(bundle, bundle.manifest.reduction, threads, engines)


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


def test_the_same_conditions_are_the_same_json_values(tiny_bundle: Path) -> None:
    assert key(tiny_bundle) == key(tiny_bundle) == json.loads(json.dumps(key(tiny_bundle)))


@pytest.mark.parametrize(
    ("function", "value", "name"),
    [
        ("processor", "another", "processor"),
        ("cores", 1000, "cores"),
        ("gpus", ["NVIDIA L4, driver 580.1"], "gpus"),
    ],
)
def test_the_machine_counts(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, function: str, value: object, name: str
) -> None:
    before = key(tiny_bundle)
    monkeypatch.setattr(module, function, lambda: value)
    assert changed(before, key(tiny_bundle)) == {name}


def test_the_gpus_that_are_to_be_used_count(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    before = key(tiny_bundle)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert changed(before, key(tiny_bundle)) == {"visible gpus"}


@pytest.mark.parametrize(
    "distribution",
    [
        "trbert-deploy", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx",
        "cuda-bindings", "nvidia-cublas", "nvidia-cudnn-cu13", "torch",
    ],
)  # fmt: skip
def test_versions_of_what_computes_count(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distribution: str
) -> None:
    before = key(tiny_bundle)
    directory = tmp_path / f"{distribution.replace('-', '_')}-99.0.dist-info"
    directory.mkdir()
    (directory / "METADATA").write_text(f"Name: {distribution}\nVersion: 99.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    after = key(tiny_bundle)
    assert changed(before, after) == {"versions"}
    assert changed(before["versions"], after["versions"]) == {distribution}
    assert after["versions"][distribution] == "99.0"


def test_a_backend_from_outside_counts(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key(tiny_bundle)
    info = replace(BACKENDS["torch"], distributions=("numpy",))
    monkeypatch.setitem(BACKENDS, "mine", info)
    assert set(key(tiny_bundle)["versions"]) - set(before["versions"]) == {"numpy"}


def test_bundle_rules_and_threads_count(
    tiny_bundle: Path, make_checkpoint: Any, tmp_path: Path
) -> None:
    from trbert_deploy.exporters.export import export_bundle

    before = key(tiny_bundle)
    assert changed(before, key(tiny_bundle, threads=4)) == {"threads"}
    bundle = Bundle.open(tiny_bundle)
    other = conditions(bundle, bundle.manifest.reduction.at_threshold(0.125), 1)
    assert changed(before, other) == {"reduction"}
    export_bundle(make_checkpoint(seed=1), tmp_path / "other")
    assert changed(before, key(tmp_path / "other")) == {"bundle"}


def test_engines_count_unless_they_are_ignored(own_bundle: Path) -> None:
    before, ignored = key(own_bundle), key(own_bundle, engines=False)
    assert changed(before, ignored) == {"engines"}
    manifest = own_bundle / "engines" / "rtx-fp16-sm90" / ENGINE_MANIFEST
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    built = key(own_bundle)
    assert changed(before, built) == {"engines"}
    assert key(own_bundle, engines=False) == ignored
    manifest.write_text('{"another": "build"}')
    assert changed(built, key(own_bundle)) == {"engines"}


def test_the_backend_of_a_chain_counts(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    one, two = (
        chain_conditions(bundle, load(tiny_bundle, threads=threads).chain) for threads in (1, 2)
    )
    assert changed(one, two) == {"backend"}
    assert one["backend"]["threads"] == "1"
