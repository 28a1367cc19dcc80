"""Buffers of GPU memory: the same tests on CUDA's bindings in host memory, and on a real GPU."""

from __future__ import annotations

import gc
import subprocess
from typing import Any

import numpy as np
import pytest
from host_cuda import HostCuda

from trbert_deploy.errors import DeviceError
from trbert_deploy.runtime.backends.tensorrt import device as device_module
from trbert_deploy.runtime.backends.tensorrt import library
from trbert_deploy.runtime.backends.tensorrt.device import Device

MIB = 2**20


@pytest.fixture(params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """CUDA's runtime bindings, those in host memory or the real ones."""
    if request.param == "gpu":
        return real_cuda()
    host = HostCuda()
    monkeypatch.setattr(device_module, "import_cuda", lambda: host)
    monkeypatch.setattr(library, "import_cuda", lambda: host)
    return host


def real_cuda() -> Any:
    pytest.importorskip("cuda.bindings.runtime")
    try:
        library.gpu_compute_capability()
    except DeviceError:
        pytest.skip("no NVIDIA GPU")
    return library.import_cuda()


def read(device: Device, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    array = np.zeros(shape, dtype)
    device.download(name, array)
    device.synchronize()
    return array


def free_bytes(cuda: Any) -> int:
    return int(library.check_cuda(cuda.cudaMemGetInfo())[0])


def random_array(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-100, 100, shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "float16"])
@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (2, 4096, 64), (0, 4)])
def test_what_is_uploaded_comes_back(cuda: Any, shape: tuple[int, ...], dtype: str) -> None:
    device, array = Device(), random_array(*shape, dtype=dtype)
    assert device.upload("hidden", array)
    np.testing.assert_array_equal(read(device, "hidden", shape, dtype), array)


def test_a_buffer_grows_and_is_reused(cuda: Any) -> None:
    device = Device()
    small, large = random_array(100), random_array(200, seed=1)
    other = device.upload("other", random_array(50, seed=2))
    first = device.upload("hidden", large)
    assert device.upload("hidden", small) == first == device.reserve("hidden", 800)
    device.upload("hidden", np.concatenate([large] * 10_000))
    assert device.reserve("other", 200) == other
    np.testing.assert_array_equal(
        read(device, "hidden", (2_000_000,), "float32"), np.tile(large, 10_000)
    )
    np.testing.assert_array_equal(read(device, "other", (50,), "float32"), random_array(50, seed=2))


def test_an_uploaded_array_may_change_at_once(cuda: Any) -> None:
    device, array = Device(), random_array(4 * MIB)
    expected = array.copy()
    device.upload("hidden", array)
    array[:] = 0.0
    np.testing.assert_array_equal(read(device, "hidden", array.shape, "float32"), expected)


def test_copies_happen_in_the_order_of_the_calls(cuda: Any) -> None:
    device = Device()
    rounds = [random_array(MIB, seed=seed) for seed in range(5)]
    received = [np.zeros_like(array) for array in rounds]
    for array, into in zip(rounds, received, strict=True):
        device.upload("hidden", array)
        device.download("hidden", into)
    device.synchronize()
    for array, into in zip(rounds, received, strict=True):
        np.testing.assert_array_equal(into, array)


def test_two_devices_do_not_share_buffers(cuda: Any) -> None:
    one, other = Device(), Device()
    assert one.stream != other.stream
    one.upload("hidden", random_array(10))
    other.upload("hidden", random_array(10, seed=1))
    np.testing.assert_array_equal(read(one, "hidden", (10,), "float32"), random_array(10))


@pytest.mark.parametrize("how", ["close", "let go"])
def test_memory_is_given_back(cuda: Any, how: str) -> None:
    keeper = Device()  # the process' own share of the GPU is taken, and stays
    keeper.reserve("hidden", MIB)
    before = free_bytes(cuda)
    device = Device()
    for name in ("hidden", "scratch"):
        device.reserve(name, 100 * MIB)
    assert before - free_bytes(cuda) >= 200 * MIB
    gc.disable()  # reference counts alone must do
    try:
        if how == "close":
            device.close()
            device.close()
        else:
            del device
        assert free_bytes(cuda) == before
    finally:
        gc.enable()
    keeper.synchronize()


def test_growing_gives_the_smaller_one_back(cuda: Any) -> None:
    keeper = Device()
    keeper.reserve("hidden", MIB)
    before = free_bytes(cuda)
    device = Device()
    for size in (100, 200, 300):
        device.reserve("hidden", size * MIB)
    assert 300 * MIB <= before - free_bytes(cuda) < 400 * MIB


def test_blocks_come_and_go(cuda: Any) -> None:
    device, array = Device(), random_array(MIB)
    blocks = [device.allocate("states", array.nbytes) for _ in range(3)]
    assert len({block.address for block in blocks}) == 3
    device.upload("hidden", array)
    device.move(blocks[1].address, device.reserve("hidden", array.nbytes), array.nbytes)
    half = array.nbytes // 2
    device.move(blocks[0].address + half, blocks[1].address, half)
    received = np.zeros_like(array)
    device.read(blocks[0].address, received)
    device.synchronize()
    np.testing.assert_array_equal(received[MIB // 2 :], array[: MIB // 2])
    if isinstance(cuda, HostCuda):
        used = cuda.used_bytes
        del blocks[:]
        device.synchronize()
        assert used - cuda.used_bytes == 3 * array.nbytes


def test_a_block_outlives_who_made_it(cuda: Any) -> None:
    device = Device()
    block = device.allocate("states", MIB)
    stream = device.stream
    del device
    if isinstance(cuda, HostCuda):
        assert stream in cuda.streams
        del block
        assert stream not in cuda.streams and not cuda.memory


def test_too_little_memory_says_how_much_is_needed(cuda: Any) -> None:
    device = Device()
    device.upload("hidden", random_array(10))
    total = int(library.check_cuda(cuda.cudaMemGetInfo())[1])
    with pytest.raises(
        DeviceError,
        match=rf"^too little GPU memory for hidden: {total // MIB + 1} MiB are needed, \d+ of "
        rf"{total // MIB} MiB are free: free some, or run smaller batches .*$",
    ):
        device.reserve("hidden", total + 1)
    # Nothing is left of it: no error that another library would meet, and the device goes on.
    assert cuda.cudaGetLastError() == (cuda.cudaError_t.cudaSuccess,)
    device.upload("hidden", random_array(10, seed=1))
    np.testing.assert_array_equal(
        read(device, "hidden", (10,), "float32"), random_array(10, seed=1)
    )


def test_a_failed_call_is_told_in_one_line(cuda: Any) -> None:
    device = Device()
    device.reserve("hidden", 16)
    with pytest.raises(DeviceError, match=r"^CUDA call failed \(cudaErrorInvalidValue\): [^\n]*$"):
        device.download("hidden", np.zeros(MIB, np.float32))
    cuda.cudaGetLastError()


def test_nothing_is_there_before_somebody_waits() -> None:
    """The stand-in is as late as a GPU may be, so that a forgotten wait shows."""
    host, array = HostCuda(), random_array(10)
    _, stream = host.cudaStreamCreate()
    _, address = host.cudaMalloc(40)
    received = np.zeros_like(array)
    kinds = host.cudaMemcpyKind
    for target, source, kind in (
        (address, array.ctypes.data, kinds.cudaMemcpyHostToDevice),
        (received.ctypes.data, address, kinds.cudaMemcpyDeviceToHost),
    ):
        host.cudaMemcpyAsync(target, source, 40, kind, stream)
    assert not received.any() and host.cudaMemGetInfo()[1] != host.total_bytes
    host.cudaStreamSynchronize(stream)
    np.testing.assert_array_equal(received, array)


def test_compute_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    host = HostCuda()
    monkeypatch.setattr(library, "import_cuda", lambda: host)
    assert library.gpu_compute_capability() == "8.6"
    host.devices = 0
    with pytest.raises(DeviceError, match=r"no NVIDIA GPU answers \(cudaErrorNoDevice\)"):
        library.gpu_compute_capability()


@pytest.mark.gpu
def test_compute_capability_is_the_driver_s() -> None:
    real_cuda()
    command = ["nvidia-smi", "--id=0", "--query-gpu=compute_cap", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert library.gpu_compute_capability() == said.strip()
