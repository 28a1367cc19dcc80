"""Single files of weights: what is read, and what is refused without running it."""

from __future__ import annotations

import os
import pickle
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from trbert_deploy.errors import CheckpointError, StorageError
from trbert_deploy.modeling.checkpoints.weight_files import (
    read_pickle,
    read_safetensors,
    write_safetensors,
)

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2, dtype=torch.float16)}


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def assert_state(found: dict[str, torch.Tensor]) -> None:
    assert found.keys() == STATE.keys()
    for name, tensor in STATE.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def test_safetensors_return_as_written(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", STATE, {"format": "pt"})
    assert_state(read_safetensors(tmp_path / "model.safetensors"))


def test_safetensors_that_cannot_be_read_or_written_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        read_safetensors(path)
    path.write_bytes(b"PK nothing of the kind")
    with pytest.raises(CheckpointError, match="is damaged or truncated"):
        read_safetensors(path)
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, limits[1]))  # a full disk
    try:
        with pytest.raises(StorageError, match=r"model\.safetensors cannot be written"):
            write_safetensors(path, STATE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
def test_pickles_of_tensors_are_read(tmp_path: Path, archive: bool) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(STATE, path, _use_new_zipfile_serialization=archive)
    assert_state(read_pickle(path))


@pytest.mark.parametrize("archive", [True, False, None], ids=["zip", "legacy", "bare pickle"])
def test_code_in_a_pickle_is_refused_and_never_run(tmp_path: Path, archive: bool | None) -> None:
    path, trace = tmp_path / "pytorch_model.bin", tmp_path / "trace"
    evil = {**STATE, "evil": Malicious(trace)}
    if archive is None:
        path.write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=archive)
    with pytest.raises(CheckpointError, match="holds code or is damaged") as caught:
        read_pickle(path)
    assert not trace.exists()
    assert "expected tensors only, in safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)
    if archive is not None:
        assert f"it asks for {os.mkdir.__module__}.mkdir" in str(caught.value)


def test_the_conversion_that_the_error_shows_works(tmp_path: Path) -> None:
    directory = tmp_path / "it's a model"
    directory.mkdir()
    torch.save({**STATE, "epoch": np.random.default_rng(0)}, directory / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="it asks for numpy") as caught:
        read_pickle(directory / "pytorch_model.bin")
    _, *arguments = shlex.split(str(caught.value).partition("convert it with: ")[2])
    subprocess.run([sys.executable, *arguments], check=True)
    assert_state(read_safetensors(directory / "model.safetensors"))


@pytest.mark.parametrize("kept", [0, 10, 700, -30])
def test_a_truncated_pickle_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="holds code or is damaged") as caught:
        read_pickle(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
def test_damaged_pickles_give_no_other_error(tmp_path: Path, archive: bool) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(STATE, path, _use_new_zipfile_serialization=archive)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        damaged = whole.copy()
        damaged[generator.integers(len(whole), size=4)] = generator.integers(256, size=4)
        path.write_bytes(damaged.tobytes())
        try:
            read_pickle(path)
        except CheckpointError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "holds a Tensor"),
        ([torch.zeros(3)], "a list"),
        ({3: torch.zeros(3)}, "a d"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=f"{message}.*expected names and their tensors"):
        read_pickle(tmp_path / "pytorch_model.bin")


def test_a_missing_pickle_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is missing"):
        read_pickle(tmp_path / "pytorch_model.bin")
