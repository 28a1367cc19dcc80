"""Measures how long each row of a comparison takes, beside the teacher.

    python benchmarks/quality/times.py DIR [--texts 200] [--threads T]

All rows of DIR that are done answer the same validation texts in turns, batch by batch in
alternating order, so that what slows the machine meets all of them. They run in PyTorch on packed
rows, as in training: that is where every baseline can run. What an exported chain takes is measured
by trbert-deploy bench.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
import torch
from rows import train_row
from runs import Run
from setting import SETTING_FILE, Setting, set_up_torch
from students import Student

from trbert_deploy import console
from trbert_deploy.errors import ConfigError, TrbertError
from trbert_deploy.files import read_json, write_json
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.training.batches import load_batches
from trbert_deploy.training.contexts import autocast, evaluating
from trbert_deploy.training.data import TrainingRow
from trbert_deploy.training.options import TrainOptions

BATCH_ROWS = 8


def measure(
    students: dict[str, Student],
    rows: list[TrainingRow],
    device: torch.device,
    progress: Progress = no_progress,
) -> dict[str, float]:
    """Seconds that each student takes for all rows."""
    seconds = dict.fromkeys(students, 0.0)
    starts = range(0, len(rows), BATCH_ROWS)
    names = list(students)
    for number, first in enumerate([0, *starts]):  # the first round warms up
        for name in names if number % 2 else reversed(names):
            student = students[name]
            viewed = [student.view(row) for row in rows[first : first + BATCH_ROWS]]
            (batch,) = load_batches(viewed, [list(range(len(viewed)))], device)
            with evaluating(student.model), autocast(device):
                start = time.perf_counter()
                outputs, _ = student.forward(batch)
                for values in outputs.values():
                    values.cpu()
                taken = time.perf_counter() - start
            seconds[name] += taken if number else 0.0
        progress("timing", number, len(starts))
    return seconds


def done_rows(directory: Path, setting: Setting) -> dict[str, Run]:
    """The rows of a comparison that have figures, by name."""
    runs = {}
    for path in sorted((directory / "results").glob("*.json")):
        figures = read_json(path)
        options = TrainOptions.from_json(figures["options"])
        run = Run(figures["row"], setting, options, directory, figures["variant"])
        runs[run.name] = run
    return runs


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--texts", default=200, show_default=True, help="Validation texts to run.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of PyTorch.")
def main(directory: Path, texts: int, threads: int | None) -> None:
    """Measure the rows of the comparison in DIRECTORY, and add it to their figures."""
    set_up_torch(threads)
    try:
        setting = Setting(**read_json(directory / SETTING_FILE))
        runs = done_rows(directory, setting)
        if "teacher" not in runs:
            raise ConfigError(f"{directory} has no row teacher: make it first, times are its share")
        students = {name: train_row(run) for name, run in runs.items()}
        with console.progress() as progress:
            rows = setting.validation_rows[:texts]
            seconds = measure(students, rows, setting.device, progress)
    except TrbertError as problem:
        sys.exit(f"error: {problem}")
    for name in runs:
        path = directory / "results" / f"{name}.json"
        measured = seconds["teacher"] / seconds[name]
        time_figures = {
            "rows": len(rows),
            "seconds": round(seconds[name], 3),
            "speedup": round(measured, 3),
            "threads": torch.get_num_threads(),
            "device": str(setting.device),
        }
        write_json(path, {**read_json(path), "time": time_figures})
        console.out.print(f"{name}  {measured:.2f}x")


if __name__ == "__main__":
    main()
