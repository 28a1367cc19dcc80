"""What the process runs on."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

from trbert_deploy.version import __version__

#: Where Linux tells of processors.
_PROCESSORS = Path("/proc/cpuinfo")
#: Where the driver of NVIDIA's GPUs tells of them, on Linux.
_NVIDIA = Path("/proc/driver/nvidia")


def processor() -> str:
    """The processor's name, as the system gives it."""
    return _told("model name") or platform.processor() or platform.machine()


def has_vnni() -> bool:
    """Whether the processor adds up products of 8 bits without a sum that overflows (VNNI).

    No, where the system does not tell.
    """
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(_told("flags").split())


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not everywhere; knows about pinned processes
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _told(key: str) -> str:
    """What the system says of the first processor, on Linux; nothing elsewhere."""
    if _PROCESSORS.is_file():
        for line in _PROCESSORS.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""


def gpus() -> list[str]:
    """The NVIDIA GPUs, each with its driver; none where the driver tells nothing (not on Linux)."""
    try:
        release = (_NVIDIA / "version").read_text(encoding="utf-8").partition("\n")[0]
        files = sorted(_NVIDIA.glob("gpus/*/information"))
        lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return []
    number = re.search(r"\d+(\.\d+)+", release)
    driver = number[0] if number else release.strip()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return [f"{model}, driver {driver}" for model in models]


def describe_machine() -> dict[str, str | int]:
    """Processor, the cores this process may use, GPUs, and the versions of what ran."""
    devices = gpus()
    return {
        "processor": processor(),
        "cores": cores(),
        **({"gpus": "; ".join(devices)} if devices else {}),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "trbert-deploy": __version__,
        "numpy": version("numpy"),
    }
