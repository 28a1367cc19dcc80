"""The command ``trbert-deploy train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trbert_deploy import console
from trbert_deploy.commands.options import json_option, needs, recipe_option, training_options
from trbert_deploy.training.options import TrainOptions
from trbert_deploy.training.recipe import Recipe


@click.command()
@training_options
@recipe_option
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("ckpt"),
    show_default=True,
    help="Directory of the run.",
)
@click.option("--resume", is_flag=True, help="Go on with the run in --output.")
@json_option
@needs("train")
def train(recipe: str, output: Path, resume: bool, json_path: Path | None, **options: Any) -> None:
    """Teach an encoder which tokens it can drop.

    Epochs, learning rates, cuts and so on: the recipe (docs/recipes.md).
    """
    from trbert_deploy.files import write_json
    from trbert_deploy.reports.console.training import print_training
    from trbert_deploy.training.processes import is_main
    from trbert_deploy.training.run import train as run_training

    chosen = TrainOptions(**options, recipe=Recipe.found(recipe))
    with console.progress() as progress:
        report = run_training(
            chosen, output, resume=resume, progress=progress, note=console.notes.print
        )
    if not is_main():
        return
    print_training(report, console.out)
    if json_path is not None:
        write_json(json_path, report.to_json())
