"""Whoever opens a bundle while it is replaced finds the old one or the new one, whole."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import SAMPLES, write_manifest
from trbert_deploy.errors import BundleError, StorageError
from trbert_deploy.files import read_directory, staged_directory

READER = """
import sys
from pathlib import Path
from trbert_deploy.bundle.bundle import Bundle
path, found = Path(sys.argv[1]), 0
print("ready", flush=True)
while not path.with_name("done").exists():
    Bundle.open(path, verify=sys.argv[2] == "verify")
    found += 1
print(found)
"""


def replace(bundle: Path, source: Path) -> None:
    with staged_directory(bundle) as staging:
        shutil.copytree(source, staging, dirs_exist_ok=True)


@pytest.mark.parametrize(("how", "times"), [("verify", 200), ("no verification", 50)])
def test_a_bundle_that_is_replaced_can_always_be_opened(
    own_bundle: Path, tiny_bundle: Path, tmp_path: Path, how: str, times: int
) -> None:
    other = Path(shutil.copytree(tiny_bundle, tmp_path / "other"))
    (other / SAMPLES).unlink()
    manifest = Bundle.open(own_bundle).manifest
    files = {name: digest for name, digest in manifest.files.items() if name != SAMPLES}
    write_manifest(other, dataclasses.replace(manifest, files=files))
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, own_bundle, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout is not None and reader.stdout.readline() == "ready\n"
    for number in range(times):
        replace(own_bundle, other if number % 2 == 0 else tiny_bundle)
    (tmp_path / "done").touch()
    found, problem = reader.communicate()
    assert reader.returncode == 0, problem
    assert int(found) > 0


def test_a_pipe_is_no_bundle(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="is a file: expected a directory"):
        Bundle.open(tmp_path / "pipe")


def test_a_directory_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    target, other = tmp_path / "d", tmp_path / "e"
    for path, text in ((target, "old"), (other, "new")):
        path.mkdir()
        for name in ("a", "b"):
            (path / name).write_text(text)
    reads = 0

    def read() -> list[str]:
        nonlocal reads
        reads += 1
        first = (target / "a").read_text()
        if reads == 1:
            replace(target, other)
        if reads == 2:
            replace(target, other)
            raise BundleError("altered")
        return [first, (target / "b").read_text()]

    assert read_directory(target, read) == ["new", "new"]
    assert reads == 3
    with pytest.raises(BundleError, match="really"):
        read_directory(target, lambda: (_ for _ in ()).throw(BundleError("really")))
