"""The command ``trbert-deploy build-engine``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trbert_deploy import console
from trbert_deploy.bounds import MOST_TEXTS, MOST_TOKENS
from trbert_deploy.commands.numbers import Wholes
from trbert_deploy.commands.options import bundle_argument, json_option, needs


@click.command("build-engine")
@bundle_argument
@click.option("--fp16", "precision", flag_value="fp16", help="Half precision (the default).")
@click.option("--bf16", "precision", flag_value="bf16", help="Half precision with float32's range.")
@click.option("--fp32", "precision", flag_value="fp32", help="Single precision.")
@click.option("--int8", "precision", flag_value="int8", help="8-bit products, the rest as fp16.")
@click.option("--fp8", "precision", flag_value="fp8", help="The same in fp8: GPUs from 8.9 on.")
@click.option(
    "--lengths",
    type=Wholes(MOST_TOKENS),
    metavar="N,N",
    help="Tokens of a text [default: 128,512,2048]",
)
@click.option(
    "--batch",
    "batches",
    type=Wholes(MOST_TEXTS),
    metavar="N,N,N",
    default="1,8,32",
    show_default=True,
    help="Least, usual, most texts.",
)
@click.option(
    "--compute-capability",
    metavar="X.Y",
    help="GPU to build for [default: the one here]",
)
@click.option(
    "--flavour",
    type=click.Choice(["tensorrt", "rtx"]),
    help="TensorRT or TensorRT for RTX, if both are there.",
)
@click.option(
    "--verify",
    is_flag=True,
    help="Compare with ONNX Runtime; needs their GPU.",
)
@click.option(
    "--plugin",
    is_flag=True,
    help="Whole chain: compact by a plugin, exactly.",
)
@click.option("--plan", is_flag=True, help="Tell profiles and memory, and build nothing.")
@click.option("--force", is_flag=True, help="Build again what is there already.")
@json_option
@needs("tensorrt-rtx")
def build_engine(
    bundle: Path, precision: str | None, plan: bool, json_path: Path | None, **options: Any
) -> None:
    """Build TensorRT engines for every segment of BUNDLE, into the bundle."""
    from trbert_deploy.exporters.tensorrt.engine_build import EngineOptions, build_engines
    from trbert_deploy.files import write_json
    from trbert_deploy.reports.console.engines import print_engines, print_plan

    wanted = EngineOptions(precision=precision or "fp16", **options)
    if plan:
        from trbert_deploy.exporters.tensorrt.plan import plan_engines

        planned = plan_engines(bundle, wanted)
        print_plan(planned, console.out)
        if json_path is not None:
            write_json(json_path, planned.to_json())
        return
    with console.progress() as progress:
        report = build_engines(bundle, wanted, progress)
    if report.note:
        console.notes.print(report.note)
    print_engines(report, console.out)
    if json_path is not None:
        write_json(json_path, report.to_json())
