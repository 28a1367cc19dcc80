"""What a benchmark ran on."""

from __future__ import annotations

import platform
from importlib.metadata import version

from trbert_deploy.machine import cores, processor


def describe_machine() -> dict[str, str | int]:
    """Processor, the cores this process may use, and the versions of what ran."""
    return {
        "processor": processor(),
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "trbert-deploy": version("trbert-deploy"),
        "numpy": version("numpy"),
    }
