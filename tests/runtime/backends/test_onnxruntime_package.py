"""ONNX Runtime's distributions: one alone is taken, and CUDA only where it answers."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnxruntime
import pytest

from trbert_deploy import load
from trbert_deploy.batching import NO_PADDING
from trbert_deploy.errors import ConfigError, MissingDependencyError
from trbert_deploy.runtime.backends import onnxruntime_package as package
from trbert_deploy.runtime.backends.onnxruntime_package import (
    CPU,
    CUDA,
    DeviceWarning,
    providers,
    require_package,
    why_no_cuda,
)

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Lets only the named distributions be installed; ``files``: what stands in the package."""

    def install(*distributions: str, files: tuple[str, ...] = ("__init__.py",)) -> None:
        site = tmp_path / "site-packages"
        for name in distributions:
            directory = site / f"{name.replace('-', '_')}-1.23.0.dist-info"
            directory.mkdir(parents=True)
            (directory / "METADATA").write_text(f"Name: {name}\nVersion: 1.23.0\n")
        for file in files:
            (site / "onnxruntime" / file).parent.mkdir(parents=True, exist_ok=True)
            (site / "onnxruntime" / file).touch()
        monkeypatch.delitem(sys.modules, "onnxruntime")
        monkeypatch.setattr(sys, "path", [str(site)])

    return install


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-gpu", "onnxruntime-directml"])
def test_one_distribution_is_right(install: Install, name: str) -> None:
    install(name)
    require_package()


def test_a_build_of_ones_own_is_right(install: Install) -> None:
    install()
    require_package()


@pytest.mark.parametrize(
    ("names", "extra"),
    [
        (("onnxruntime", "onnxruntime-gpu"), "gpu"),
        (("onnxruntime", "onnxruntime-openvino"), "cpu"),
        (("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml"), "gpu"),
    ],
)
def test_several_are_refused_with_the_repair(
    install: Install, names: tuple[str, ...], extra: str
) -> None:
    install(*names)
    with pytest.raises(ConfigError) as caught:
        require_package()
    assert str(caught.value) == (
        f"{' and '.join(names)} are installed together, and overwrite each other's files: "
        f"run pip uninstall -y {' '.join(names)} && pip install 'trbert-deploy[{extra}]'"
    )


@pytest.mark.parametrize(
    ("left", "files", "removed", "extra"),
    [
        ("onnxruntime-gpu", ("capi/libonnxruntime_providers_cuda.so",), "onnxruntime-gpu", "gpu"),
        ("onnxruntime", (), "onnxruntime", "cpu"),  # the other had all of its files
        (None, ("capi/libonnxruntime.so",), "onnxruntime onnxruntime-gpu", "gpu"),
    ],
)
def test_what_is_left_of_two_is_refused(
    install: Install, left: str | None, files: tuple[str, ...], removed: str, extra: str
) -> None:
    install(*(() if left is None else (left,)), files=files)
    with pytest.raises(ConfigError, match="the package onnxruntime lacks files") as caught:
        require_package()
    repair = f"run pip uninstall -y {removed} && pip install 'trbert-deploy[{extra}]'"
    assert str(caught.value).endswith(repair)


def test_without_any_both_extras_are_named(install: Install) -> None:
    install(files=())
    with pytest.raises(MissingDependencyError) as caught:
        require_package()
    assert str(caught.value) == (
        "backend onnxruntime needs the package onnxruntime, which is not installed: "
        "run pip install 'trbert-deploy[cpu]' or pip install 'trbert-deploy[gpu]'"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "BUNDLE", "--text", "a"),
        ("predict", "BUNDLE", "--text", "a", "--backend", "auto"),
        ("export", "CHECKPOINT"),
    ],
)
def test_a_command_says_so_before_it_runs(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    directory = tmp_path / "onnxruntime_gpu-1.23.0.dist-info"
    directory.mkdir()
    (directory / "METADATA").write_text("Name: onnxruntime-gpu\nVersion: 1.23.0\n")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    code = "import sys; sys.modules['openvino'] = None; from trbert_deploy.cli import main; main()"
    places = {"BUNDLE": str(tiny_bundle), "CHECKPOINT": str(tiny_checkpoint)}
    done = subprocess.run(
        [sys.executable, "-c", code, *(places.get(each, each) for each in arguments)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: onnxruntime and onnxruntime-gpu are installed together")


@pytest.fixture
def forget() -> Iterator[None]:
    """What was found out of CUDA is found out anew."""
    package._why_no_cuda.cache_clear()
    yield
    package._why_no_cuda.cache_clear()


@pytest.fixture
def built_for_cuda(monkeypatch: pytest.MonkeyPatch, forget: None) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])


@pytest.mark.usefixtures("forget")
def test_a_build_for_cpus_runs_on_the_cpu_and_says_nothing() -> None:
    assert providers() == [CPU]
    assert why_no_cuda() is None


@pytest.mark.usefixtures("built_for_cuda")
def test_without_cuda_it_runs_on_the_cpu_and_says_why(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The stand-in is the list of providers alone: the installed build really has no CUDA."""

    def preload() -> None:
        onnxruntime.print("Failed to load libcublas.so.13")

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
    with pytest.warns(
        DeviceWarning, match="installed for NVIDIA GPUs and runs on the CPU: "
    ) as said:
        loaded = load(tiny_bundle, threads=1)
    assert len(said) == 1 and len(str(said[0].message).splitlines()) == 1
    description = loaded.chain.backend.description
    assert description["provider"] == CPU
    assert f": {description['no CUDA']}; it needs NVIDIA's driver" in str(said[0].message)
    assert loaded.chain.padding == NO_PADDING  # as a CPU likes it
    assert loaded.chain.backend.call_tokens == 1024
    assert loaded(["a film"])[0].label
    assert load(tiny_bundle, threads=1).chain.backend.description == description  # told once
    assert capfd.readouterr() == ("", "")
    assert not hasattr(onnxruntime, "print")


@pytest.mark.usefixtures("built_for_cuda")
def test_threads_find_it_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []

    def preload() -> None:
        loaded.append(threading.get_ident())
        time.sleep(0.05)  # so that the others come meanwhile
        assert onnxruntime.print("Failed to load libcublas.so.13") is None

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
    with pytest.warns(DeviceWarning) as said, ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: providers(), range(4)))
    assert found == [[CPU]] * 4
    assert len(loaded) == len(said) == 1


@pytest.mark.usefixtures("built_for_cuda")
def test_the_reason_is_the_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def open_library(path: str) -> None:
        opened.append(Path(path).name)
        if "cuda" in path:
            raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", open_library)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    with pytest.warns(DeviceWarning):
        assert why_no_cuda() == "libcuda.so.1: cannot open shared object file"
    assert opened == [f"libonnxruntime_providers_{name}.so" for name in ("shared", "cuda")]
    assert providers() == [CPU]


@pytest.mark.usefixtures("built_for_cuda")
def test_where_cuda_answers_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[tuple[str, int]] = []

    class Value:
        @staticmethod
        def ortvalue_from_numpy(array: object, device: str, number: int) -> None:
            placed.append((device, number))

    monkeypatch.setattr(onnxruntime, "OrtValue", Value)
    assert providers() == [CUDA, CPU]
    assert why_no_cuda() is None
    assert placed == [("cuda", 0)]
    assert package.EXTRAS == ("cpu", "gpu")
