"""Damaged bundles and engine sets: refused in one line, or answered as what they hold asks for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from fuzz.cases import KINDS, Original, case_of
from fuzz.pool import Verdicts, judge_all

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import WEIGHTS
from trbert_deploy.files import sha256
from trbert_deploy.runtime.backends.tensorrt.engine_set import (
    EngineFile,
    EngineKey,
    EngineManifest,
    Profile,
    write_manifest,
)

#: Cases of a quick run, in one process.
QUICK = 300
VERSION_2 = Path(__file__).parents[1] / "data" / "version_2" / "bundle"


@pytest.fixture(scope="session")
def originals(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A bundle of today with engines, which are stand-ins, and one of version 2."""
    today = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("fuzz") / "today"))
    digests = Bundle.open(today).manifest.files
    graphs = {graph.name: digests[graph.file] for graph in Bundle.open(today).manifest.graphs}
    profiles = (Profile(1, 16, 1, 2, 4), Profile(17, 64, 1, 2, 4))
    key = EngineKey(
        "rtx", "1.7.1", "8.6", "fp16", dict.fromkeys(graphs, profiles), digests[WEIGHTS], graphs
    )
    directory = today / "engines" / key.directory
    directory.mkdir(parents=True)
    engines = []
    for name in graphs:
        (directory / f"{name}.engine").write_text(f"engine of {name}")
        digest = sha256(directory / f"{name}.engine")
        engines.append(EngineFile(name, digest, 20, 1024, 0.5))
    write_manifest(directory, EngineManifest(key, tuple(engines), {"rows": 4}))
    return {"today": today, "version_2": VERSION_2}


def test_damage_is_refused_or_answered_rightly(
    originals: Mapping[str, Path], tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    wanted = pytestconfig.getoption("--fuzz-cases", None)
    single = pytestconfig.getoption("--fuzz-case", None)
    cases = range(wanted or QUICK) if single is None else range(single, single + 1)
    workers = min(len(os.sched_getaffinity(0)), len(cases)) if wanted else 1

    def progress(verdicts: Verdicts) -> None:
        done, failed = verdicts.outcomes.total(), sum(map(len, verdicts.failures.values()))
        if wanted and done % 1000 == 0:
            print(f"{done} of {wanted} cases, {failed} failed", verdicts, flush=True)

    verdicts = judge_all(cases, originals, tmp_path, workers, progress)
    if single is not None:
        print(case_of(single, {name: Original.read(path) for name, path in originals.items()}))
    for (kind, outcome), count in sorted(verdicts.outcomes.items()):
        print(f"{count:7} {kind}: {outcome}")
    assert not verdicts.failures, f"\n{verdicts}"
    if single is None:  # what is never opened would prove nothing of the answers
        assert sum(n for (_, came), n in verdicts.outcomes.items() if came == "answered") > 0


def test_a_case_is_the_same_at_every_call(originals: Mapping[str, Path]) -> None:
    read = {name: Original.read(path) for name, path in originals.items()}
    kinds = set()
    for number in range(200):
        one, other = case_of(number, read), case_of(number, read)
        kinds.add(one.kind)
        assert (one.kind, one.bundle, one.may) == (other.kind, other.bundle, other.may)
        assert list(one.files) == list(other.files)
        for content, same in zip(one.files.values(), other.files.values(), strict=True):
            assert content == same or not isinstance(content, bytes)
    assert len(kinds) > len(KINDS) / 2
