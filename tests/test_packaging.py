"""What an installation brings: one ONNX Runtime, by the one extra that says which."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from trbert_deploy.runtime.backends.onnxruntime_package import DISTRIBUTIONS, EXTRAS
from trbert_deploy.runtime.backends.registry import BACKENDS

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OPTIONAL = PROJECT["optional-dependencies"]


def brought_by(requirements: list[str]) -> set[str]:
    """The distributions of requirements, and all that they require as far as they are installed."""
    found: set[str] = set()
    waiting = [Requirement(each) for each in requirements]
    while waiting:
        requirement = waiting.pop()
        if requirement.name in found:
            continue
        found.add(requirement.name)
        try:
            further = map(Requirement, requires(requirement.name) or ())
        except PackageNotFoundError:
            continue
        extras = requirement.extras or {""}
        waiting += [
            each
            for each in further
            if each.marker is None or any(each.marker.evaluate({"extra": one}) for one in extras)
        ]
    return found


@pytest.mark.parametrize("extra", ["", *sorted(OPTIONAL.keys() - set(EXTRAS))])
def test_no_other_extra_brings_onnxruntime(extra: str) -> None:
    brought = brought_by(OPTIONAL[extra] if extra else PROJECT["dependencies"])
    assert not brought & set(DISTRIBUTIONS)


def test_cpu_and_gpu_bring_one_each() -> None:
    names = {extra: brought_by(OPTIONAL[extra]) & set(DISTRIBUTIONS) for extra in EXTRAS}
    assert names == {"cpu": {"onnxruntime"}, "gpu": {"onnxruntime-gpu"}}
    (gpu,) = map(Requirement, OPTIONAL["gpu"])
    assert gpu.extras == {"cuda", "cudnn"}  # with CUDA's libraries


def test_extras_that_are_named_are_there() -> None:
    named = {extra for info in BACKENDS.values() for extra in info.extras}
    lines = re.findall(r"pip install '?\.?(?:trbert-deploy)?\[([\w,-]+)\]", read("README.md"))
    named |= {extra for line in lines for extra in line.split(",")}
    assert {"cpu", "gpu", "train", "export"} <= named <= OPTIONAL.keys()


def test_make_installs_one_onnxruntime() -> None:
    (extras,) = re.findall(r"^EXTRAS := (.*)$", read("Makefile"), re.MULTILINE)
    assert set(extras.split(",")) & set(EXTRAS) == {"cpu"}
    assert f"'.[{extras}]'" in read("constraints.txt")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")
