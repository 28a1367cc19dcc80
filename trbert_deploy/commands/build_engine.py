"""The command ``trbert-deploy build-engine``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trbert_deploy import console
from trbert_deploy.commands.options import bundle_argument, json_option, needs, numbers


@click.command("build-engine")
@bundle_argument
@click.option("--fp16", "precision", flag_value="fp16", help="Half precision (the default).")
@click.option("--bf16", "precision", flag_value="bf16", help="Half precision with float32's range.")
@click.option("--fp32", "precision", flag_value="fp32", help="Single precision.")
@click.option(
    "--lengths",
    callback=numbers,
    help="Tokens per row, one profile up to each [default: 128,512,2048, cut to what "
    "the bundle takes].",
)
@click.option(
    "--batch",
    "batches",
    callback=numbers,
    default="1,8,32",
    show_default=True,
    help="Rows per call: smallest, usual, largest.",
)
@click.option(
    "--compute-capability",
    metavar="X.Y",
    help="GPU to build for, such as 8.6 [default: the one here].",
)
@click.option(
    "--flavour",
    type=click.Choice(["tensorrt", "rtx"]),
    help="TensorRT, or TensorRT for RTX [default: the one installed].",
)
@click.option(
    "--verify",
    is_flag=True,
    help="Compare the engines with ONNX Runtime before they are put in place. Without a GPU that "
    "runs them they are put there, and it is said that they were not verified.",
)
@click.option("--force", is_flag=True, help="Build even where the same engines are there.")
@json_option
@needs("tensorrt-rtx")
def build_engine(
    bundle: Path, precision: str | None, json_path: Path | None, **options: Any
) -> None:
    """Build TensorRT engines for every segment of BUNDLE, into the bundle."""
    from trbert_deploy.exporters.tensorrt.engine_build import EngineOptions, build_engines
    from trbert_deploy.files import write_json
    from trbert_deploy.reports.console.engines import print_engines

    with console.progress() as progress:
        report = build_engines(
            bundle, EngineOptions(precision=precision or "fp16", **options), progress
        )
    if report.note:
        console.notes.print(report.note)
    print_engines(report, console.out)
    if json_path is not None:
        write_json(json_path, report.to_json())
