"""The table of backends: one that is registered from outside, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from trbert_deploy import load
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.cli import cli, main
from trbert_deploy.errors import ConfigError, EngineError, MissingDependencyError
from trbert_deploy.runtime import loading
from trbert_deploy.runtime.autotune.fastest_backend import Choice
from trbert_deploy.runtime.backends.backend import BackendOptions
from trbert_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from trbert_deploy.runtime.backends.registry import (
    BACKENDS,
    BackendInfo,
    open_backend,
    register_backend,
)

TEXTS = ["a wonderful film", "the house of his mother was awful and boring"]


@pytest.fixture
def own_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A backend called ``mine``, whose module stands outside the package."""
    opened: list[str] = []

    def open_mine(bundle: Bundle, options: BackendOptions) -> OnnxRuntimeBackend:
        opened.append(options.precision or "its own")
        return OnnxRuntimeBackend(bundle, BackendOptions(threads=1))

    module = ModuleType("a_backend_of_mine")
    module.open_backend = open_mine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    register_backend("mine", BackendInfo(module.__name__, ("mine",), ("mine",), ("fp32", "fp8")))
    yield opened
    del BACKENDS["mine"]


def test_a_backend_from_outside(own_backend: list[str], tiny_bundle: Path) -> None:
    expected = load(tiny_bundle, threads=1)(TEXTS)
    assert load(tiny_bundle, "mine")(TEXTS) == expected
    load(tiny_bundle, "mine", precision="fp8")
    assert own_backend == ["its own", "fp8"]
    with pytest.raises(ConfigError, match="mine cannot be asked for int8: expected fp32 or"):
        load(tiny_bundle, "mine", precision="int8")


def test_an_unknown_backend_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="unknown backend 'yours': expected one of onnxruntime,"):
        load(tiny_bundle, "yours")


def test_a_missing_package_is_named_with_its_extra(tiny_bundle: Path) -> None:
    code = (
        "import sys; sys.modules['openvino'] = None\n"
        "from trbert_deploy import load\n"
        "from trbert_deploy.errors import MissingDependencyError\n"
        "try:\n    load(sys.argv[1], 'openvino')\n"
        "except MissingDependencyError as problem:\n    print(problem)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_bundle)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("backend openvino needs the package openvino, which is not inst")
    assert "trbert-deploy[openvino]" in done.stdout


def test_a_module_that_is_missing_for_another_reason_is_a_bug(tiny_bundle: Path) -> None:
    register_backend("broken", BackendInfo("a_module_that_is_nowhere", ("something_else",)))
    try:
        with pytest.raises(ModuleNotFoundError, match="a_module_that_is_nowhere") as caught:
            open_backend("broken", Bundle.open(tiny_bundle), BackendOptions())
        assert not isinstance(caught.value, MissingDependencyError)
    finally:
        del BACKENDS["broken"]


def test_engines_can_be_ignored(tiny_bundle: Path) -> None:
    with pytest.raises(ConfigError, match=r"tensorrt runs the bundle's engines, .*--no-engines"):
        load(tiny_bundle, "tensorrt", engines=False)
    assert load(tiny_bundle, engines=False)(TEXTS) == load(tiny_bundle)(TEXTS)


def test_auto_tries_engines_unless_they_are_ignored(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []

    def choose(*_: object, engines: bool, **__: object) -> Choice:
        told.append(engines)
        return Choice("onnxruntime", "fp32", {}, {}, {})

    monkeypatch.setattr(loading, "choose_backend", choose)
    for engines in (True, False):
        load(tiny_bundle, "auto", threads=1, dense_below=0, engines=engines)
    assert told == [True, False]
    assert [name for name, info in BACKENDS.items() if info.engines] == [
        "tensorrt",
        "one-engine",
    ]


@pytest.mark.parametrize("command", ["predict", "evaluate", "bench"])
def test_help_names_the_backends(command: str) -> None:
    (option,) = [each for each in cli.commands[command].params if each.name == "backend"]
    assert all(name in str(vars(option)["help"]) for name in (*BACKENDS, "auto"))


@pytest.mark.parametrize("command", ["predict", "evaluate", "bench"])
def test_the_commands_can_ignore_engines(
    tiny_bundle: Path,
    labelled: Path,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    texts = ["--input" if command == "predict" else "--data", str(labelled)]
    arguments = [command, str(tiny_bundle), *texts, "--backend", "tensorrt", "--no-engines"]
    monkeypatch.setattr("sys.argv", ["trbert-deploy", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert "which are to be ignored (--no-engines)" in capfd.readouterr().err


def test_engines_of_one_precision_can_be_asked_for(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(
        "trbert_deploy.runtime.backends.tensorrt.backend.gpu_compute_capability", lambda: "8.6"
    )
    directory = own_bundle / "engines" / "rtx-fp16-sm86"
    directory.mkdir(parents=True)
    (directory / "manifest.json").write_text("{}")
    with pytest.raises(EngineError, match=r"in bf16: rtx-fp16-sm86 .*is not rtx-bf16-sm86"):
        load(own_bundle, "tensorrt", precision="bf16")
    with pytest.raises(ConfigError, match="cuda cannot be asked for int8: expected fp16 or"):
        load(own_bundle, "cuda", precision="int8")
