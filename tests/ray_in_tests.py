"""A Ray cluster for tests, and its processes, to be killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Ray Serve kills a proxy that takes longer to begin; on a busy machine it takes longer than its 5.
PROXY_SECONDS = "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"


@contextmanager
def local_cluster() -> Iterator[None]:
    """A cluster of two processors in processes of this machine."""
    import ray  # where it is not installed, tests that need it are skipped

    os.environ.setdefault(PROXY_SECONDS, "50")  # all processes of the cluster inherit it
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 << 20,
        log_to_driver=False,
    )
    try:
        yield
    finally:
        ray.shutdown()


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
