"""NVIDIA's Triton Inference Server, for tests: the one in the wheel nvidia-pytriton.

``make triton-env`` installs it into build/triton-env, an environment of its own, since it wants
older packages; TRITON_ENV names another such environment. Its server is built for numpy 1, which it
brings; what else the server's Python needs is lent by the environment of the tests. TRITON_STUB
names a ``triton_python_backend_stub`` of the same server that is built for numpy 2, with which the
tests' own numpy is taken.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2 as httpx
import pytest
from services_in_tests import free_ports

ROOT = Path(__file__).parents[1]
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
PACKAGES = Path("lib", f"python{PYTHON}", "site-packages")
STUB = "triton_python_backend_stub"
START_S, END_S = 300, 60


def packages_with_server() -> Path:
    """The folder of packages in which the server lies; skips the test where there is none."""
    environment = Path(os.environ.get("TRITON_ENV") or ROOT / "build" / "triton-env")
    packages = environment.resolve() / PACKAGES
    stub = packages / "pytriton" / "tritonserver" / "python_backend_stubs" / PYTHON
    if not stub.is_dir():
        pytest.skip(f"no Triton server for Python {PYTHON} in {environment}: make triton-env")
    return packages


def server_python(folder: Path, packages: Path, own_numpy: bool) -> Path:
    """A Python environment for the server: numpy of ``packages``, the rest of the tests' own.

    The server looks for Python by PATH, and not at PYTHONPATH.

    Args:
        own_numpy: take that of the tests, too.
    """
    venv.create(folder, symlinks=True)
    own = folder / PACKAGES
    for each in () if own_numpy else packages.glob("numpy*"):
        (own / each.name).symlink_to(each)
    lent = [str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]
    (own / "lent.pth").write_text("\n".join(lent))
    return folder


@contextmanager
def triton_server(repositories: Sequence[Path], scratch: Path) -> Iterator[str]:
    """Address of a server of some repositories; it loads a model anew when it is told to.

    Args:
        scratch: an empty folder.
    """
    packages = packages_with_server()
    server = packages / "pytriton" / "tritonserver"
    backend = scratch / "backends" / "python"
    backend.mkdir(parents=True)
    own_stub = os.environ.get("TRITON_STUB")
    stub = Path(own_stub or server / "python_backend_stubs" / PYTHON / STUB)
    for each in (*(server / "backends" / "python").glob("*.*"), stub):
        (backend / each.name).symlink_to(each)
    for program in (server / "bin" / "tritonserver", stub):
        program.chmod(0o755)
    python = server_python(scratch / "python", packages, own_numpy=bool(own_stub))
    http, metrics = free_ports(2)
    libraries = (packages / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR"))
    command = [
        str(server / "bin" / "tritonserver"),
        *(f"--model-repository={each}" for each in repositories),
        f"--backend-directory={scratch / 'backends'}",
        f"--backend-config=python,shm-region-prefix-name=trbert_{os.getpid()}_{http}",
        "--model-control-mode=explicit",
        "--load-model=*",
        "--http-address=127.0.0.1",
        f"--http-port={http}",
        "--metrics-address=127.0.0.1",
        f"--metrics-port={metrics}",
        "--allow-grpc=false",
        "--allow-gpu-metrics=false",
        "--exit-timeout-secs=5",
    ]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        "PATH": f"{python / 'bin'}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    log = scratch / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    try:
        _wait_until_ready(process, http, log)
        yield f"127.0.0.1:{http}"
    finally:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text(errors="replace")
        with suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{port}/v2/health/ready").status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError(log.read_text(errors="replace"))
