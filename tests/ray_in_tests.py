"""Processes of a Ray cluster that a test started, to be killed."""

from __future__ import annotations

import os
from pathlib import Path


def process_of(title: str) -> int:
    """A process below this one whose title begins so, such as ``ray::Worker``."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes()
                if command.startswith(title.encode()) and _is_below_this(int(folder.name)):
                    return int(folder.name)
            except OSError:  # it has ended
                continue
    raise AssertionError(f"no {title} runs")


def _is_below_this(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False
