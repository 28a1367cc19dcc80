"""``trbert-deploy build-engine`` as a user runs it: in a process of its own, with real engines."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trbert_deploy.errors import DeviceError
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.runtime.backends.tensorrt.library import gpu_compute_capability

SMALL = ("--lengths", "16,64", "--batch", "1,2", "--compute-capability", "8.6", "--flavour", "rtx")


@pytest.fixture(scope="module")
def small_bundle(
    make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A bundle of one layer and one graph, made in a directory where it is ./bundle."""
    path = tmp_path_factory.mktemp("small") / "bundle"
    export_bundle(make_checkpoint(cuts="", num_layers=1), path)
    return path


@pytest.fixture
def place(small_bundle: Path, tmp_path: Path) -> Path:
    """A working directory with a copy of it as ./bundle."""
    shutil.copytree(small_bundle, tmp_path / "bundle")
    return tmp_path


def run(place: Path, *arguments: str, without: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command in ``place``, with modules that cannot be imported."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({without.split()!r}))\n"
        "from trbert_deploy.cli import main; sys.argv[0] = 'trbert-deploy'; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, "build-engine", *arguments],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )


def has_gpu() -> bool:
    try:
        gpu_compute_capability()
    except DeviceError:
        return False
    return True


def test_builds_and_reports_then_skips(place: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("polygraphy")
    done = run(place, "--fp16", *SMALL, "--json", "figures.json")
    assert done.returncode == 0, done.stderr
    for part in ("dense", "fp16", "scratch MiB", "largest output difference", "same survivors"):
        assert part in done.stdout
    assert "built: bundle/engines/rtx-fp16-sm86" in done.stdout
    figures = json.loads((place / "figures.json").read_text())
    assert figures["skipped"] is False
    assert figures["key"]["precision"] == "fp16"
    assert figures["engines"][0]["size_bytes"] > 0
    again = run(place, *SMALL, "--verify")  # fp16 is the default
    assert again.returncode == 0, again.stderr
    assert "unchanged, nothing built" in again.stdout
    if not has_gpu():
        assert "not verified: no NVIDIA GPU here" in again.stdout
    assert "unchanged" not in run(place, *SMALL, "--force").stdout


def test_defaults_alone(place: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    done = run(place, "--bf16")
    if has_gpu():
        pytest.skip("the default GPU is the one here")
    assert done.returncode == 0, done.stderr
    assert "no NVIDIA GPU here: building for compute capability 8.6" in " ".join(
        done.stderr.split()
    )
    assert "rows of up to 64 tokens, in batches of 1 to 32" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ("--lengths", "12,x"),
        ("--lengths", "0"),
        ("--batch", ""),
        ("--batch", "-1"),
        ("--precision", "fp16"),
    ],
)
def test_usage_errors(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--lengths", "65"), "length 65 is more than the bundle takes: expected at most 64"),
        (("--batch", "1,2,3,4"), "expected at most three"),
        (("--flavour", "rtx", "--compute-capability", "9.0"), "compute capability is 9.0"),
        (("nowhere",), "bundle nowhere does not exist"),
        (("--plugin",), "bundle has no graph of its whole chain: export it with --fused"),
    ],
)
def test_user_errors_are_one_line(place: Path, arguments: tuple[str, ...], message: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    done = run(place, *arguments)
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert message in line
    assert "Traceback" not in done.stderr
    assert not (place / "bundle" / "engines").exists()


def test_without_tensorrt(place: Path) -> None:
    done = run(place, "--fp16", without="tensorrt tensorrt_rtx")
    assert done.returncode == 1
    assert "pip install 'trbert-deploy[tensorrt-rtx]'" in done.stderr
    assert "pip install 'trbert-deploy[tensorrt]'" in done.stderr


def test_verify_without_polygraphy(place: Path) -> None:
    done = run(place, "--verify", without="polygraphy")
    assert done.returncode == 1
    assert "--verify needs the package polygraphy" in done.stderr
    assert "pip install 'trbert-deploy[verify]'" in done.stderr


def test_without_onnx(place: Path) -> None:
    done = run(place, without="onnx")
    assert done.returncode == 1
    assert "needs the package onnx" in done.stderr


def test_help_needs_nothing(tmp_path: Path) -> None:
    done = run(
        tmp_path, "--help", without="onnx onnxruntime torch tensorrt tensorrt_rtx polygraphy"
    )
    assert done.returncode == 0
    assert "--compute-capability" in done.stdout
