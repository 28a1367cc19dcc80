"""The command line: each command parses, calls one library function and prints."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import click

from trbert_deploy import console
from trbert_deploy.cli_options import (
    backend_option,
    bundle_argument,
    given_training_options,
    json_option,
    needs,
    numbers,
    png_file,
    recipe_option,
    threads_option,
    threshold_option,
    training_options,
)
from trbert_deploy.errors import TrbertError
from trbert_deploy.training.options import TrainOptions
from trbert_deploy.version import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="trbert-deploy")
def cli() -> None:
    """Make a fine-tuned BERT-type encoder several times faster by dropping tokens on the way."""


def main() -> None:
    """Entry point: user errors end with one line and exit code 1, bugs keep their traceback."""
    warnings.showwarning = _show_warning
    try:
        cli(standalone_mode=False)
    except click.UsageError as problem:
        problem.show()
        sys.exit(2)
    except click.ClickException as problem:
        problem.show()
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):
        _fail(
            "interrupted: nothing was left half-written; run the command again to go on "
            "(train: with --resume)"
        )
    except TrbertError as problem:
        _fail(str(problem))
    except BrokenPipeError:  # a reader such as head has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as problem:
        where = f" {problem.filename}" if problem.filename else ""
        _fail(f"cannot read or write{where}: {problem.strerror or problem}")


def _fail(message: str) -> None:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(1)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"warning: {message}", err=True)


@cli.command()
@recipe_option
@training_options
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("ckpt"),
    show_default=True,
    help="Directory of the run; the checkpoint lies in it.",
)
@click.option("--resume", is_flag=True, help="Go on with the run in --output.")
@json_option
@needs("train")
def train(recipe: str, output: Path, resume: bool, json_path: Path | None, **options: Any) -> None:
    """Teach an encoder which tokens it can drop: teacher, saliency guide, policy, joint, hard."""
    from trbert_deploy.files import write_json
    from trbert_deploy.training.processes import is_main
    from trbert_deploy.training.report import print_training
    from trbert_deploy.training.run import train as run_training

    chosen = TrainOptions.by_recipe(recipe, **given_training_options(options))
    with console.progress() as progress:
        report = run_training(
            chosen, output, resume=resume, progress=progress, note=console.notes.print
        )
    if not is_main():
        return
    print_training(report, console.out)
    if json_path is not None:
        write_json(json_path, report.to_json())


@cli.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("bundle"),
    show_default=True,
    help="Bundle directory to make; an older bundle there is replaced.",
)
@click.option(
    "--samples/--no-samples", default=True, help="Put sample texts for benchmarks into the bundle."
)
@json_option
@needs("export")
def export(checkpoint: Path, output: Path, samples: bool, json_path: Path | None) -> None:
    """Export CHECKPOINT as a bundle of ONNX graphs, checked against PyTorch."""
    from trbert_deploy.exporters.export import export_bundle
    from trbert_deploy.exporters.report import print_export
    from trbert_deploy.files import write_json

    with console.progress() as progress:
        report = export_bundle(checkpoint, output, samples=samples, progress=progress)
    print_export(report, console.out)
    if json_path is not None:
        write_json(json_path, report.to_json())


@cli.command("build-engine")
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
    "--verify", is_flag=True, help="Compare the engines with ONNX Runtime where a GPU is present."
)
@click.option("--force", is_flag=True, help="Build even where the same engines are there.")
@json_option
@needs("tensorrt-rtx")
def build_engine(
    bundle: Path, precision: str | None, verify: bool, json_path: Path | None, **options: Any
) -> None:
    """Build TensorRT engines for every segment of BUNDLE, into the bundle."""
    from trbert_deploy.bundle import Bundle
    from trbert_deploy.exporters.engines import EngineOptions, build_engines
    from trbert_deploy.exporters.engines_report import print_engines, print_verification
    from trbert_deploy.exporters.verification import (
        require_polygraphy,
        verify_engines,
        why_not_verifiable,
    )
    from trbert_deploy.files import write_json

    if verify:
        require_polygraphy()
    with console.progress() as progress:
        report = build_engines(
            bundle, EngineOptions(precision=precision or "fp16", **options), progress
        )
    if report.note:
        console.notes.print(report.note)
    print_engines(report, console.out)
    figures = report.to_json()
    if verify and (reason := why_not_verifiable(report.engine_set)):
        console.out.print(f"not verified: {reason}")
    elif verify:
        with console.progress() as progress:
            results = verify_engines(Bundle.open(bundle), report.engine_set, progress)
        print_verification(results, console.out)
        figures["verification"] = [result.to_json() for result in results]
    if json_path is not None:
        write_json(json_path, figures)


@cli.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("quickstart"),
    show_default=True,
    help="Directory of the example.",
)
@click.option("--fresh", is_flag=True, help="Start over instead of going on where it was.")
@needs("train,export,tensorrt-rtx,demo")
def quickstart(output: Path, fresh: bool) -> None:
    """Run the main job on an embedded example: train, export, build engines, measure."""
    from trbert_deploy.demo.quickstart import QuickstartOptions, run_quickstart, start_over
    from trbert_deploy.demo.report import print_summary

    if fresh:
        start_over(output)
    summary = run_quickstart(QuickstartOptions(), output, console.progress, console.notes.print)
    print_summary(summary, output, console.out)


@cli.command()
@click.argument(
    "model",
    metavar="[BUNDLE or CHECKPOINT]",
    type=click.Path(path_type=Path),
    default=Path("bundle"),
    required=False,
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help='JSON lines with "text", optionally "text_pair", and "label", plain or .gz.',
)
@click.option(
    "--teacher",
    type=click.Path(path_type=Path),
    help="Compare with the dense model of this bundle or checkpoint, such as "
    "ckpt/stages/teacher [default: the model's own weights].",
)
@click.option(
    "--backend",
    type=click.Choice(["onnxruntime", "torch", "tensorrt"]),
    help="[default: torch if there is a checkpoint, and onnxruntime otherwise]",
)
@threads_option
@threshold_option
@click.option("--sweep", is_flag=True, help="Evaluate along the thresholds too, with a plot.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=png_file,
    help="PNG file of the sweep [default: sweep.png].",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    help="Exit with code 3 if accuracy falls by more than so many points.",
)
@json_option
@needs("export")
def evaluate(
    model: Path,
    data: Path,
    teacher: Path | None,
    backend: str | None,
    threads: int,
    threshold: float | None,
    sweep: bool,
    plot: Path | None,
    max_drop: float | None,
    json_path: Path | None,
) -> None:
    """Compare a model with its dense model, or its teacher, on labelled texts."""
    from trbert_deploy.bench.models import open_models
    from trbert_deploy.bench.quality import evaluate_quality, warn_of_few_rows
    from trbert_deploy.bench.report import print_quality, print_sweep
    from trbert_deploy.files import write_json
    from trbert_deploy.runtime.reading import read_texts

    if plot is not None and not sweep:
        raise click.UsageError("--plot draws a sweep: add --sweep")
    if sweep:
        from trbert_deploy.bench.plots import write_sweep_plot
        from trbert_deploy.bench.sweep import sweep_thresholds
    pipeline, dense = open_models(model, teacher, backend, threads=threads, threshold=threshold)
    texts = list(read_texts(data))
    with console.progress() as progress:
        if sweep:
            swept = sweep_thresholds(pipeline, texts, teacher=dense, progress=progress)
            report, figures = swept.current, swept.to_json()
        else:
            report = evaluate_quality(pipeline, texts, teacher=dense, progress=progress)
            figures = report.to_json()
    print_quality(report, console.out)
    if sweep:
        print_sweep(swept, console.out)
        plot = plot or Path("sweep.png")
        write_sweep_plot(swept, plot)
        console.out.print(f"plot: {plot}", soft_wrap=True)
    if json_path is not None:
        write_json(json_path, figures)
    if max_drop:
        warn_of_few_rows(report, max_drop)
    if max_drop is not None and -report.accuracy_change > max_drop:
        console.notes.print(
            f"accuracy falls by {-report.accuracy_change:.2f} points, more than {max_drop:g}"
        )
        sys.exit(3)


@cli.command()
@bundle_argument
@click.option(
    "--lengths",
    callback=numbers,
    help="Tokens per row [default: 512,2048, cut to what the bundle takes].",
)
@click.option(
    "--batch",
    "batches",
    callback=numbers,
    default="1",
    show_default=True,
    help="Rows per call, such as 1,8.",
)
@click.option(
    "--backend",
    type=click.Choice(["onnxruntime", "torch", "tensorrt"]),
    help="[default: onnxruntime, and tensorrt where the bundle has engines]",
)
@threads_option
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    help="Measured repetitions [default: 8 or more, for about 5 seconds a point].",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, dir_okay=False),
    help='JSON lines with "text" (.gz too) instead of the bundle\'s sample texts.',
)
@json_option
@needs("export")
def bench(
    bundle: Path,
    lengths: tuple[int, ...] | None,
    batches: tuple[int, ...],
    backend: str | None,
    threads: int,
    rounds: int | None,
    data: Path | None,
    json_path: Path | None,
) -> None:
    """Measure how much faster BUNDLE is than the same model with no token removed."""
    from trbert_deploy.bench.bundles import BenchOptions, bench_bundle
    from trbert_deploy.bench.report import print_report
    from trbert_deploy.bench.timing import Rounds
    from trbert_deploy.files import write_json

    effort = Rounds() if rounds is None else Rounds.exactly(rounds)
    options = BenchOptions(lengths, batches, backend, threads, effort, data)
    with console.progress() as progress:
        report = bench_bundle(bundle, options, progress)
    print_report(report, console.out)
    if json_path is not None:
        write_json(json_path, report.to_json())


@cli.command()
@bundle_argument
@click.option("--text", "texts", multiple=True, help="A text; may be given several times.")
@click.option(
    "--input",
    "source",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help='JSON lines with "text" and optionally "text_pair", plain or .gz; - for stdin.',
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write to this file, whole or not at all, instead of stdout.",
)
@backend_option
@threads_option
@threshold_option
@click.option("--dense", is_flag=True, help="Remove no token.")
@click.option("--kept", is_flag=True, help="Report the tokens that survived each cut.")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Texts per call.",
)
@click.option(
    "--max-length",
    type=click.IntRange(min=1),
    help="Most tokens of a text [default: what the bundle takes].",
)
@click.option(
    "--truncate/--no-truncate", default=True, help="Cut longer texts (the default), or refuse them."
)
@needs("export")
def predict(
    bundle: Path,
    texts: tuple[str, ...],
    source: Path | None,
    output: Path | None,
    backend: str,
    threads: int,
    threshold: float | None,
    dense: bool,
    kept: bool,
    batch_size: int,
    max_length: int | None,
    truncate: bool,
) -> None:
    """Classify texts with BUNDLE: one JSON object a line, in the order of the texts."""
    from trbert_deploy.files import staged_file
    from trbert_deploy.runtime.pipeline import load
    from trbert_deploy.runtime.predicting import name_texts, predict_lines
    from trbert_deploy.runtime.reading import count_texts, read_texts

    if bool(texts) == (source is not None):
        raise click.UsageError("give texts either with --text or with --input FILE")
    pipeline = load(
        bundle,
        backend,
        threads=threads,
        truncate=truncate,
        max_length=max_length,
        threshold=threshold,
    )
    named = name_texts(texts) if source is None else read_texts(source)
    lines = predict_lines(pipeline, named, batch_size=batch_size, return_kept=kept, dense=dense)
    if output is None:
        console.write_lines(lines)
    else:
        total = len(texts) if source is None else count_texts(source)
        with (
            staged_file(output) as staging,
            staging.open("w", encoding="utf-8") as file,
            console.progress() as progress,
        ):
            for done, line in enumerate(lines, start=1):
                file.write(line + "\n")
                progress("predict", done, total)
    tokenizer = pipeline.tokenizer
    if tokenizer.truncated:
        console.notes.print(
            f"{tokenizer.truncated} of {tokenizer.encoded} texts were cut to "
            f"{tokenizer.max_length} tokens"
        )


if __name__ == "__main__":
    main()
