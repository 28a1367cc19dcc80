"""One row of a quality table in training: its directory, its stages, its time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from setting import Setting
from students import Student

from trbert_deploy.errors import ConfigError
from trbert_deploy.files import read_json, write_json
from trbert_deploy.modeling.checkpoints.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from trbert_deploy.modeling.checkpoints.weight_files import SAFETENSORS_FILE
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.training.averaging import (
    Judge,
    clear_progress,
    planned_runs,
    train_averaged,
)
from trbert_deploy.training.data import TrainingRow
from trbert_deploy.training.options import TrainOptions
from trbert_deploy.training.recipe import DISTILLING
from trbert_deploy.training.stages.guide import Guide
from trbert_deploy.training.stages.stage import Stage

OPTIONS_FILE = "options.json"
SECONDS_FILE = "seconds.json"
#: Rows of these names save what they save, whatever is asked for.
FIXED = ("teacher", "student", "chunks")


@dataclass(frozen=True)
class Run:
    """A row in training.

    Attributes:
        row: what it is, a key of ``rows.ROWS``.
        setting: what it shares with the others.
        options: of its stages.
        output: directory of the comparison.
        variant: tells rows with other options apart.
        progress: told of every step.
    """

    row: str
    setting: Setting
    options: TrainOptions
    output: Path
    variant: str = ""
    progress: Progress = no_progress

    @property
    def name(self) -> str:
        """What its directory and its figures are called."""
        if self.row == "teacher":
            return self.row
        name = f"{self.row}.{self.variant}" if self.variant else self.row
        if not self.row.startswith(FIXED):
            name += f"-{self.options.wanted_speedup:g}"
        return f"{name}-s{self.options.recipe.seed}"

    @property
    def directory(self) -> Path:
        return self.output / self.name

    def claim(self) -> None:
        """Begin the row, or go on with it.

        Raises:
            ConfigError: it was begun with other options.
        """
        path = self.directory / OPTIONS_FILE
        if path.exists() and (
            changed := self.options.changed(TrainOptions.from_json(read_json(path)))
        ):
            raise ConfigError(
                f"{self.directory} was begun with other options ({', '.join(changed)}): give the "
                "same ones, or a --variant of its own"
            )
        write_json(path, self.options.to_json())

    def guide(self) -> Guide:
        """The teacher's view of the training rows, and its answers on the recombined ones."""
        recipe = self.options.recipe
        making = (self.output, recipe.batch_tokens, self.progress)
        guide = self.setting.guide(recipe.cuts, *making)
        if not recipe.recombined:
            return guide
        more = self.setting.answers(recipe.recombined, *making)
        return replace(guide, answers=guide.answers + more)

    def rows_of(self, stage: str) -> list[TrainingRow]:
        """What a stage learns from (see ``Prepared.rows_of``)."""
        rows = self.setting.training_rows
        recombined = self.options.recipe.recombined
        if stage not in DISTILLING or not recombined:
            return rows
        return rows + self.setting.recombined_rows(recombined)

    def load(self, stage: str, model: ReducedModel) -> bool:
        """Load what a stage came to, if it is done."""
        directory = self.directory / stage
        if not (directory / SAFETENSORS_FILE).exists():
            return False
        model.take_over(load_checkpoint(directory).model)
        return True

    def train(self, name: str, student: Student, begin: Callable[[], Stage], judge: Judge) -> None:
        """Train a stage, from where it was stopped, and save what it comes to.

        Batches are planned by whole texts, so that all rows take the same ones.
        """
        options, rows = self.options, self.rows_of(name)
        directory = self.directory / name
        runs = planned_runs(name, options, rows, directory, self.setting.device)
        viewed = [student.view(row) for row in rows]
        watch = Stopwatch(directory / SECONDS_FILE, self.progress)
        train_averaged(runs, student.model, begin, judge, viewed, watch)
        watch.save()
        teacher = Path(self.setting.teacher)
        length = self.setting.max_length or student.model.spec.max_positions
        recipe = options.recipe.to_toml()
        save_checkpoint(Checkpoint(student.model, teacher, length, recipe=recipe), directory)
        clear_progress(directory, keep_results=name != "hard")

    def seconds(self) -> dict[str, float]:
        """Training time of each of its stages, summed over interruptions."""
        files = sorted(self.directory.glob(f"*/{SECONDS_FILE}"))
        return {path.parent.name: read_json(path)["seconds"] for path in files}


class Stopwatch:
    """Adds up the seconds that a stage takes; is told of every step, and passes it on.

    Args:
        path: holds the seconds so far.
        progress: told in turn.
    """

    SAVE_SECONDS = 30.0

    def __init__(self, path: Path, progress: Progress) -> None:
        self._path = path
        self._progress = progress
        self._before = read_json(path)["seconds"] if path.exists() else 0.0
        self._start = self._saved = time.monotonic()

    def __call__(self, step: str, done: int, total: int | None) -> None:
        self._progress(step, done, total)
        if time.monotonic() - self._saved > self.SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        self._saved = time.monotonic()
        write_json(self._path, {"seconds": round(self._before + self._saved - self._start, 1)})
