"""Directories and hub names, the hub replaced by a function."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)

from trbert_deploy.errors import CheckpointError, StorageError
from trbert_deploy.modeling.checkpoints import sources
from trbert_deploy.modeling.checkpoints.sources import files_of, require_inside

UNREACHABLE = LocalEntryNotFoundError("An error happened while trying to locate the file.\nMore.")
RESPONSE: Any = SimpleNamespace(headers={}, request=None)


class Hub:
    """Stands in for the hub: files by name, or an error."""

    def __init__(self, files: dict[str, Path], otherwise: Exception) -> None:
        self.files = files
        self.otherwise = otherwise
        self.calls: list[tuple[str, bool]] = []

    def __call__(self, repository: str, name: str, *, local_files_only: bool) -> str:
        assert repository == "someone/model"
        self.calls.append((name, local_files_only))
        if name in self.files:
            return str(self.files[name])
        raise self.otherwise


def use(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> Hub:
    monkeypatch.setattr(sources, "hf_hub_download", hub)
    return hub


def test_a_directory_gives_its_files(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    for name in ("config.json", "onnx/model.onnx"):
        (tmp_path / name).touch()
    source = files_of(str(tmp_path))
    assert source.where == str(tmp_path)
    assert source.file("config.json") == tmp_path / "config.json"
    assert source.file("model.safetensors") is None
    assert source.file("onnx") is None
    assert source.names() == ["config.json", "onnx/model.onnx"]


def test_a_file_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(StorageError, match="is a file: expected a directory"):
        files_of(str(tmp_path / "model.safetensors"))


def test_a_hub_name_gives_the_files_of_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = RemoteEntryNotFoundError("404", response=RESPONSE)
    hub = use(monkeypatch, Hub({"config.json": tmp_path / "config.json"}, absent))
    monkeypatch.setattr(HfApi, "list_repo_files", lambda api, name: ["b.h5", "a.json"])
    source = files_of("someone/model")
    assert source.file("model.safetensors") is None
    assert source.file("config.json") == tmp_path / "config.json"
    assert source.names() == ["a.json", "b.h5"]
    assert hub.calls == [("model.safetensors", False), ("config.json", False)]


def test_an_unreachable_hub_is_asked_once_and_then_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = use(monkeypatch, Hub({"pytorch_model.bin": tmp_path / "bin"}, UNREACHABLE))
    source = files_of("someone/model")
    assert source.file("model.safetensors") is None
    assert source.file("pytorch_model.bin") == tmp_path / "bin"
    assert hub.calls == [("model.safetensors", False), ("pytorch_model.bin", True)]
    with pytest.raises(CheckpointError, match=r"^someone/model is no directory here, and from the"):
        source.names()


@pytest.mark.parametrize(
    "problem",
    [
        RepositoryNotFoundError("404 Client Error.\nRepository Not Found", response=RESPONSE),
        HFValidationError("Repo id must be in the form 'repo_name' or 'namespace/repo_name'"),
        ConnectionError("no route"),
        sources.TRANSPORT_ERROR("the connection was reset while it sent the file"),
    ],
)
def test_a_name_that_the_hub_refuses_is_one_line(
    problem: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Hub({}, problem))
    with pytest.raises(CheckpointError, match="from the hub it cannot be loaded: ") as caught:
        files_of("someone/model").file("model.safetensors")
    assert "\n" not in str(caught.value)


def test_a_hub_that_does_not_list_its_files_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(api: HfApi, name: str) -> list[str]:
        raise ConnectionError("reset")

    monkeypatch.setattr(HfApi, "list_repo_files", refuse)
    assert files_of("someone/model").names() == []


@pytest.mark.parametrize("name", ["a.bin", "shards/a.bin", "0_Transformer", "", ".", "a..b"])
def test_paths_inside_are_returned(name: str) -> None:
    assert require_inside(name, "index.json") == name


@pytest.mark.parametrize(
    "name", ["../a.bin", "a/../../b", "/etc/passwd", "..\\a", "C:\\a", "C:a", "\\a", 3, None, ["a"]]
)
def test_paths_outside_are_refused(name: object) -> None:
    with pytest.raises(CheckpointError, match=r"index\.json names the path .*inside its own"):
        require_inside(name, "index.json")
