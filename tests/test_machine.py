"""What the process runs on, as the system tells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from trbert_deploy import machine
from trbert_deploy.machine import describe_machine, gpus, has_vnni, processor

RELEASE = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build\n"
    "GCC version:  gcc version 15.3.0 (GCC)\n"
)
INFORMATION = "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 41\nGPU Firmware: \t 580.159.04\n"


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the driver would tell of its GPUs; it is not there yet."""
    directory = tmp_path / "nvidia"
    monkeypatch.setattr(machine, "_NVIDIA", directory)
    return directory


def tell(driver: Path, *information: str) -> None:
    driver.mkdir()
    (driver / "version").write_text(RELEASE)
    for number, text in enumerate(information):
        place = driver / "gpus" / f"0000:00:0{number}.0"
        place.mkdir(parents=True)
        (place / "information").write_text(text)


def test_gpus_are_named_with_their_driver(driver: Path) -> None:
    tell(driver, INFORMATION, INFORMATION.replace("H100 80GB HBM3", "L4"))
    assert gpus() == [
        "NVIDIA H100 80GB HBM3, driver 580.159.04",
        "NVIDIA L4, driver 580.159.04",
    ]
    assert describe_machine()["gpus"] == "; ".join(gpus())


def test_a_machine_without_a_gpu_names_none(driver: Path) -> None:
    assert gpus() == []
    assert "gpus" not in describe_machine()
    tell(driver)  # the driver without a GPU
    assert gpus() == []


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("flags\t\t: fpu avx512f avx512_vnni amx_int8", True),
        ("flags\t\t: fpu avx2 avx_vnni", True),
        ("flags\t\t: fpu avx2 avx512f", False),
        ("Features\t: fp asimd asimddp i8mm", False),  # ARM, where nothing was measured
        (None, False),  # another system
    ],
)
def test_vnni_is_what_the_system_says(
    told: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "cpuinfo"
    if told is not None:
        place.write_text(f"processor\t: 0\nmodel name\t: A Processor: fast\n{told}\n")
    monkeypatch.setattr(machine, "_PROCESSORS", place)
    assert has_vnni() is expected
    assert told is None or processor() == "A Processor: fast"
