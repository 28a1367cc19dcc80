"""A process that is killed at any moment leaves the old files or the new ones, whole.

The quick form kills at some calls of each kind; with FAULTS=1 (make faults) at every one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.actions import CONDITIONS
from faults.killing import Point, Victim, some, strace_works
from training_in_tests import make_workplace, options_for, with_recipe

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.files import sha256
from trbert_deploy.modeling.checkpoints.checkpoint import load_checkpoint
from trbert_deploy.runtime.autotune.cache import _digest
from trbert_deploy.runtime.backends.tensorrt.engine_set import EngineSet

pytestmark = pytest.mark.skipif(
    not strace_works(), reason="strace is not installed, or may not inject: apt-get install strace"
)

#: Kills at every so manieth call; 0 for the quick form.
EVERY = int(os.environ.get("FAULTS", "0"))
#: Renames that the quick form kills before and after, and other calls.
QUICK = 6
SMALL: dict[str, Any] = {"cuts": "", "num_layers": 1}
REMEMBERED = f"trbert-deploy/backend-{_digest(CONDITIONS)}.json"

#: Makes what is there before, in an empty directory.
Prepare = Callable[[Path], None]
#: Looks at what a kill left.
Check = Callable[[Path], None]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def killed(scratch: Path) -> Iterator[Victim]:
    (scratch / "tmp").mkdir()
    with Victim(scratch / "tmp") as victim:
        yield victim


def kill_everywhere(
    killed: Victim,
    key: str,
    prepare: Prepare,
    check: Check,
    scratch: Path,
    points: list[Point],
    quick: int = QUICK,
) -> None:
    """Kill an action at some of ``points``, or at all, each in a directory that is made anew."""
    assert len(points) > quick
    chosen = points[::EVERY] if EVERY else some(points, quick)
    for number, point in enumerate(chosen):
        place = scratch / key / str(number)
        place.mkdir(parents=True)
        prepare(place)
        killed.kill(key, place, point)
        try:
            check(place)
        except BaseException as problem:
            problem.add_note(f"killed at {point}")
            raise
        shutil.rmtree(place)
    if EVERY:
        print(f"\n{key}: killed at {len(chosen)} of {len(points)} system calls")


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def tree(directory: Path) -> dict[str, str]:
    """The digest of every file under a directory, hidden ones too."""
    return {
        str(path.relative_to(directory)): sha256(path)
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def bundle(make_checkpoint: Callable[..., Path], scratch: Path) -> Path:
    """A bundle of one graph."""
    export_bundle(make_checkpoint(seed=1, **SMALL), scratch / "live" / "bundle")
    return scratch / "live" / "bundle"


def test_an_export_over_a_live_bundle(
    make_checkpoint: Callable[..., Path], bundle: Path, scratch: Path, killed: Victim
) -> None:
    def prepare(place: Path) -> None:
        shutil.copytree(bundle, place / "bundle")

    killed.prepare("export", "export", {"checkpoint": str(make_checkpoint(seed=2, **SMALL))})
    done = scratch / "exported"
    prepare(done)
    points = killed.points("export", done)
    old, new = tree(bundle), tree(done / "bundle")
    assert old != new and names(done) == ["bundle"]

    def check(place: Path) -> None:
        Bundle.open(place / "bundle")
        assert tree(place / "bundle") in (old, new)
        killed.run("export", place)
        assert tree(place / "bundle") == new
        assert names(place) == ["bundle"]

    kill_everywhere(killed, "export", prepare, check, scratch, points)


def test_a_build_over_live_engines(bundle: Path, scratch: Path, killed: Victim) -> None:
    pytest.importorskip("tensorrt_rtx")

    def prepare(place: Path) -> None:
        shutil.copytree(live, place / "bundle")

    for key, lengths in (("old engines", [64]), ("new engines", [16, 64])):
        shutil.copytree(bundle, scratch / "tmp" / f"warm-{key}" / "bundle")
        killed.prepare(key, "build-engine", {"lengths": lengths})
    live = scratch / "tmp" / "warm-old engines" / "bundle"
    done = scratch / "built"
    prepare(done)
    points = killed.points("new engines", done)
    old, new = tree(live), tree(done / "bundle")
    assert old != new and names(done / "bundle" / "engines") == ["rtx-fp16-sm86"]

    def check(place: Path) -> None:
        path = place / "bundle" / "engines" / "rtx-fp16-sm86"
        EngineSet.open(path, Bundle.open(place / "bundle")).verify()
        assert tree(path) in (
            tree(live / "engines" / path.name),
            tree(done / path.relative_to(place)),
        )
        killed.run("new engines", place)
        assert tree(place / "bundle") == new
        assert names(place) == ["bundle"]

    kill_everywhere(killed, "new engines", prepare, check, scratch, points)


def test_a_checkpoint_saved_over_another(
    make_checkpoint: Callable[..., Path], scratch: Path, killed: Victim
) -> None:
    """All that differs between two checkpoints changes in one step: weights, cuts, recipe ..."""
    live, other = make_checkpoint(cuts="1", seed=1), make_checkpoint(cuts="1,2", seed=2)
    (live / "vocab.txt").write_text("of another tokenizer")
    (live / "samples.jsonl").write_text('{"text": "another sample"}\n')
    for number, checkpoint in enumerate((live, other)):
        (checkpoint / "recipe.toml").write_text(f"seed = {number}\n")
    (live / "stages").mkdir()
    (live / "stages" / "figures.jsonl").write_text("{}")

    def prepare(place: Path) -> None:
        shutil.copytree(live, place / "ckpt")

    killed.prepare("save", "save", {"checkpoint": str(other)})
    done = scratch / "saved"
    prepare(done)
    points = killed.points("save", done)
    old, new = tree(live), tree(done / "ckpt")
    assert new == tree(other) | {"stages/figures.jsonl": old["stages/figures.jsonl"]}

    def check(place: Path) -> None:
        found = load_checkpoint(place / "ckpt")
        files = {name: digest for name, digest in tree(place / "ckpt").items() if name[0] != "."}
        assert files in (old, new)
        expected = load_checkpoint(live if files == old else other)
        assert found.model.reduction == expected.model.reduction
        assert found.recipe == expected.recipe
        for name, tensor in expected.model.state_dict().items():
            assert torch.equal(tensor, found.model.state_dict()[name])
        killed.run("save", place)
        assert tree(place / "ckpt") == new
        assert not [name for name in names(place / "ckpt") if name.startswith(".")]

    kill_everywhere(killed, "save", prepare, check, scratch, points)


def test_a_training_run(tokenizer_dir: Path, scratch: Path, killed: Victim) -> None:
    """Wherever a run is killed, it ends with the files of one that was not."""
    workplace = make_workplace(scratch / "work", tokenizer_dir, num_layers=1)
    for name, count in (("train", 24), ("validation", 8)):
        lines = (workplace / f"{name}.jsonl").read_text().splitlines(True)
        (workplace / f"{name}.jsonl").write_text("".join(lines[:count]))
    short = {"epochs": 0.5}
    options = with_recipe(
        replace(options_for(workplace), target_speedup=1.1),
        stages=("teacher", "guide", "policy", "joint"),  # the hard stage is saved as the joint one
        cuts="0.5",
        batch_tokens=300,
        teacher=short,
        policy=short,
        joint=short,
        averaged_runs=2,
        averaged_from="policy",
        save_seconds=0.0,
        validations=1,
    )
    killed.prepare("train", "train", options.to_json())
    done = scratch / "trained"
    done.mkdir()
    points = killed.points("train", done)
    whole = tree(done)
    names_of_joint = ("model.safetensors", "recipe.toml")
    assert {f"ckpt/stages/joint/{name}" for name in names_of_joint} < whole.keys()

    def check(place: Path) -> None:
        killed.run("train", place)
        assert tree(place) == whole
        assert not list(place.rglob(".*"))

    kill_everywhere(killed, "train", lambda place: None, check, scratch, points, quick=4)


def test_reports_and_what_is_remembered(scratch: Path, killed: Victim) -> None:
    old = {"figures.json": '{"report": "old"}', "report.html": "old", REMEMBERED: "{}"}

    def prepare(place: Path) -> None:
        for name, text in old.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(text)

    killed.prepare("report", "report", {})
    done = scratch / "reported"
    prepare(done)
    before = tree(done)
    points = killed.points("report", done)
    after = tree(done)
    assert before.keys() == after.keys()
    assert all(before[name] != after[name] for name in before)

    def check(place: Path) -> None:
        found = tree(place)
        assert all(found[name] in (before[name], after[name]) for name in before)
        killed.run("report", place)
        assert tree(place) == after
        assert not [name for name in names(place) if name.startswith(".")]

    kill_everywhere(killed, "report", prepare, check, scratch, points)
