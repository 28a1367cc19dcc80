"""The quickstart's whole path with a tiny encoder and a tiny budget."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from conftest import tiny_model
from rich.console import Console

from trbert_deploy.bench.timing import Rounds
from trbert_deploy.demo.corpus import LABELS, CorpusOptions
from trbert_deploy.demo.quickstart import QuickstartOptions, run_quickstart, start_over
from trbert_deploy.modeling.checkpoints.checkpoint import Checkpoint, save_checkpoint
from trbert_deploy.progress import Progress
from trbert_deploy.reports.console.quickstart import print_summary
from trbert_deploy.training.recipe import Recipe, TeacherRecipe

pytestmark = pytest.mark.slow

STEPS = ["1/6 data", "2/6 train", "3/6 export", "4/6 engines", "5/6 evaluate", "6/6 bench"]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> QuickstartOptions:
    path = tmp_path_factory.mktemp("tiny-encoder")
    datasets.config.HF_DATASETS_CACHE = path / "cache"
    model = tiny_model("none", labels=LABELS)
    save_checkpoint(Checkpoint(model, tokenizer_dir, 64), path / "encoder")
    return QuickstartOptions(
        corpus=CorpusOptions(train=24, validation=6, test=12, min_tokens=20, max_tokens=150),
        max_length=96,
        target_speedup=1.5,
        recipe=Recipe(averaged_runs=1, batch_tokens=512, teacher=TeacherRecipe(epochs=1.0)),
        lengths=(32, 96),
        rounds=Rounds.exactly(2),
        model=path / "encoder",
    )


class Bars:
    """Notes which steps told of their progress, and interrupts one if asked."""

    def __init__(self, interrupt: str = "") -> None:
        self.steps: list[str] = []
        self.interrupt = interrupt

    @contextlib.contextmanager
    def __call__(self, title: str) -> Iterator[Progress]:
        def tell(step: str, done: int, total: int | None) -> None:
            if title not in self.steps:
                self.steps.append(title)
            if self.interrupt and step.startswith(self.interrupt):
                raise KeyboardInterrupt

        yield tell


def test_the_whole_path_and_going_on_after_an_interruption(
    options: QuickstartOptions, tmp_path: Path
) -> None:
    directory = tmp_path / "quickstart"
    with pytest.raises(KeyboardInterrupt):
        run_quickstart(options, directory, Bars(interrupt="policy"), lambda message: None)
    record = json.loads((directory / "ckpt" / "training.json").read_text())
    assert list(record["stages"]) == ["teacher", "guide"]

    bars = Bars()
    summary = run_quickstart(options, directory, bars, lambda message: None)
    assert bars.steps == [step for step in STEPS if step != "1/6 data"]  # data is there already
    assert json.loads((directory / "summary.json").read_text()) == summary
    quality = summary["quality"]
    assert quality["rows"] == 12
    assert all(0 <= quality[model]["accuracy"] <= 1 for model in ("dense", "reduced"))
    assert 0 < quality["kept_share"][1] <= quality["kept_share"][0] <= 1
    assert [point["length"] for point in summary["bench"]] == [32, 96]
    assert set(summary["engines"]["mebibytes"]) == {"segment_0", "segment_1", "segment_2", "dense"}
    assert summary["engines"]["parity"]["rows"] > 0

    console = Console(record=True, width=120, force_terminal=False)
    print_summary(summary, directory, console)
    text = console.export_text()
    assert "accuracy on 12 test pages" in text
    assert text.count("  trbert-deploy ") == 3  # what to try next

    # Once finished it only shows what it found; fresh, it begins again.
    notes: list[str] = []
    assert run_quickstart(options, directory, Bars(), notes.append) == summary
    assert "finished" in notes[0]
    (directory / "mine.txt").write_text("kept")
    start_over(directory)
    assert [path.name for path in directory.iterdir()] == ["mine.txt"]
    shutil.rmtree(directory)
