"""What a backend keeps of the shapes that it met is bounded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

#: Measures in a process of its own: memory is the whole process'.
PROGRAM = """
import json, resource, sys
from pathlib import Path
import numpy as np
from trbert_deploy import load
from trbert_deploy.runtime.token_state import TokenRow

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20

path, backend, batches = json.load(sys.stdin)
chain = load(path, backend, threads=1, max_batch_tokens=2**20).chain
chain.call_tokens = 2**20  # calls as large as batches, which is more than a backend likes
row = lambda length: TokenRow(np.arange(length) % 200 + 5, np.zeros(length, np.int64))
after = []
for count, length in batches:
    chain.run_dense([row(length)] * count)
    after.append(resident())
# Not what getrusage says: that is never less than the process which started this one held.
most = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
print(json.dumps([after, int(most) / 1024]))
"""


def measure(
    bundle: Path, backend: str, batches: list[tuple[int, int]]
) -> tuple[list[float], float]:
    """Resident MiB behind each batch (rows, tokens of a row), and the most that there were."""
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([str(bundle), backend, batches]),
        capture_output=True,
        text=True,
        check=True,
    )
    after, most = json.loads(process.stdout)
    return after, most


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_onnx_runtime_gives_back_what_a_large_batch_took(tiny_bundle: Path) -> None:
    (before, *_, after), most = measure(tiny_bundle, "onnxruntime", [(1, 64), (4096, 64), (1, 64)])
    assert most - before > 150, "the batch is too small to tell"
    assert after - before < 0.4 * (most - before)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_openvino_forgets_shapes(tiny_bundle: Path) -> None:
    shapes = [(count, length) for count in range(1, 11) for length in range(4, 64)]
    after, _ = measure(tiny_bundle, "openvino", shapes)
    assert after[-1] < 1.2 * after[79]  # 1.7 times without a bound
