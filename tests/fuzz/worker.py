"""A process that judges cases: reads their numbers, writes what came of each.

    python -m fuzz.worker SCRATCH NAME=BUNDLE ... < numbers

One line of JSON for each number. A case fails where something else comes of it than one line of an
error that was raised on purpose, or the answers that it may give.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import traceback
import unicodedata
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from fuzz.cases import ANY, SAME, Case, Original, case_of

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import MANIFEST, Manifest
from trbert_deploy.errors import TrbertError
from trbert_deploy.runtime.backends.tensorrt.engine_set import EngineSet
from trbert_deploy.runtime.chain import Chain
from trbert_deploy.runtime.loading import load
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.runtime.tokenizing import TextTokenizer, TruncationWarning
from trbert_deploy.selection.rules import SelectionRule
from trbert_deploy.tasks.predictions import Prediction

MEMORY = 2 << 30  # bytes that a case may map beyond what the process has
TEXTS = (
    "the film tells of a wonderful sailor who returns to his village.",
    "awful",
    "nobody remembers the house of his mother and the merchant from the city " * 8,
)
HERE = ("rtx", "1.7.1", "8.6")


class Wrong(Exception):
    """Not what may come of a case."""


class Judge:
    """Puts damaged bundles on the disk, opens them, and says what came of it."""

    def __init__(self, originals: dict[str, Original], scratch: Path) -> None:
        self._originals = originals
        self._paths = {name: scratch / name for name in originals}
        for name, original in originals.items():
            shutil.copytree(original.path, self._paths[name])
        self._pipelines = {
            name: load(original.path, threads=1) for name, original in originals.items()
        }
        self._expected = cache(self._answers_at)

    def outcome(self, case: Case) -> str:
        """What came of a case.

        Raises:
            Wrong: an answer that it may not give.
        """
        path = self._paths[case.bundle]
        self._damage(path, case)
        try:
            if case.engines:
                return self._read_engines(path, case)
            if case.manifest_only:
                return self._read_manifest(case.files[MANIFEST])
            return self._open(path, case)
        except TrbertError as problem:
            line = str(problem)
            if len(line.splitlines()) != 1 or not _is_text(line):
                raise Wrong(f"{type(problem).__name__} of several lines: {line!r}") from problem
            return type(problem).__name__
        finally:
            self._mend(path, case)

    def _read_manifest(self, content: Any) -> str:
        try:
            data = json.loads(content)
        except (ValueError, RecursionError):
            return "no JSON"
        manifest = Manifest.from_json(data)
        if Manifest.from_json(manifest.to_json()) != manifest:
            raise Wrong("is not read as it is written")
        return "opened"

    def _open(self, path: Path, case: Case) -> str:
        bundle = Bundle.open(path)
        original = self._originals[case.bundle]
        if (
            case.may == SAME
            and bundle.manifest != Bundle.open(original.path).manifest
            and (case.kind != "samples")
        ):
            raise Wrong("opened with another manifest")
        if not all(isinstance(text, str | tuple) for text in bundle.samples()):
            raise Wrong("a sample text is none")
        pipeline = load(path, case.backend, threads=1)
        answers = pipeline(TEXTS, return_kept=True)
        if case.may == ANY:
            for answer in answers:
                if not abs(sum(answer.scores.values()) - 1) < 1e-6:
                    raise Wrong(f"scores that do not sum to 1: {answer}")
            return "answered"
        self._compare(answers, bundle.manifest, case)
        return "answered"

    def _compare(self, answers: list[Prediction], manifest: Manifest, case: Case) -> None:
        """Refuse answers that are not the original's at the manifest's rules."""
        rules = tuple(cut.rule for cut in manifest.reduction.cuts)
        expected = self._expected(case.bundle, rules, manifest.max_length)
        for answer, other in zip(answers, expected, strict=True):
            if list(answer.scores) != list(manifest.encoder.labels):
                raise Wrong(f"labels {list(answer.scores)}: {manifest.encoder.labels}")
            apart = zip(answer.scores.values(), other.scores.values(), strict=True)
            if max(abs(one - two) for one, two in apart) > 1e-6:
                raise Wrong(f"answers {answer}: expected {other}")
            places = [[cut.positions for cut in each.kept] for each in (answer, other)]
            if places[0] != places[1]:
                raise Wrong(f"keeps {places[0]}: expected {places[1]}")

    def _answers_at(
        self, name: str, rules: tuple[SelectionRule, ...], max_length: int
    ) -> list[Prediction]:
        """The original's answers at other rules, of rows of another greatest length."""
        own = self._pipelines[name]
        reduction = own.reduction.with_rules(rules)
        tokenizer = TextTokenizer(Bundle.open(own.path).tokenizer_path, max_length)
        chain = Chain(own.chain.backend, reduction, own.encoder.num_layers)
        return Pipeline(own.path, own.encoder, tokenizer, chain)(TEXTS, return_kept=True)

    def _read_engines(self, path: Path, case: Case) -> str:
        """Engines are the original's; which shapes they take is the manifest's to say."""
        bundle = Bundle.open(path, verify=False)
        original = self._originals[case.bundle]
        assert original.engine_manifest is not None
        directory = Path(original.engine_manifest).parent
        engine_set = EngineSet.open(path / directory, bundle)
        engine_set.require_fit(*HERE)
        engine_set.verify()
        engine_set.profile_for("dense", 16)
        for graph in bundle.manifest.graphs:
            if engine_set.read(graph.name) != original.contents[f"{directory}/{graph.name}.engine"]:
                raise Wrong(f"reads another engine as {graph.name}")
        return "read"

    def _damage(self, path: Path, case: Case) -> None:
        if case.manifest_only:
            return
        for name, content in case.files.items():
            target = path / name
            target.unlink(missing_ok=True)
            if isinstance(content, bytes):
                target.write_bytes(content)
            elif content is not None:
                content(target)

    def _mend(self, path: Path, case: Case) -> None:
        if case.manifest_only:
            return
        for name in case.files:
            target = path / name
            if target.is_dir() and not target.is_symlink():
                target.rmdir()
            target.unlink(missing_ok=True)
            if name in self._originals[case.bundle].contents:
                target.write_bytes(self._originals[case.bundle].contents[name])


def _is_text(line: str) -> bool:
    """Whether a terminal can show it."""
    return not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in line)


def judged(judge: Judge, case: Case) -> dict[str, Any]:
    """What came of a case, and why that is wrong, if it is."""
    try:
        return {"outcome": judge.outcome(case)}
    except Exception as problem:  # noqa: BLE001 - whatever it is: it is what is looked for
        frames = traceback.extract_tb(problem.__traceback__)
        ours = [frame for frame in frames if "trbert_deploy" in frame.filename] or frames
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
        why = f"{type(problem).__name__} at {where}: {str(problem)[:300]}"
        return {"outcome": "failed", "why": why, "group": f"{type(problem).__name__} {where}"}


def main() -> None:
    scratch, *named = sys.argv[1:]
    originals = {
        name: Original.read(Path(path)) for name, path in (each.split("=", 1) for each in named)
    }
    # Libraries may print: what is said to the parent goes its own way.
    told = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", TruncationWarning)
    judge = Judge(originals, Path(scratch))
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    told.write("ready\n")
    for line in sys.stdin:
        case = case_of(int(line), originals)
        told.write(
            json.dumps({"number": case.number, "kind": case.kind, **judged(judge, case)}) + "\n"
        )


if __name__ == "__main__":
    main()
