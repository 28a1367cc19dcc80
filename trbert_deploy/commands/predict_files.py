"""``trbert-deploy predict --engine ray``: files of a folder to files of another one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trbert_deploy import console
from trbert_deploy.errors import ConfigError
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.tasks.columns import ColumnNames

#: Backends that run where a worker has processors alone.
_BACKENDS = ("onnxruntime", "openvino")


def predict_on_ray(
    bundle: Path,
    source: str | None,
    output: str | None,
    columns: ColumnNames,
    point: OperatingPoint,
    options: Mapping[str, Any],
    *,
    has_texts: bool,
    workers: int | None,
    threads: int,
    kept: bool,
    dense: bool,
    batch_size: int,
    max_batch_tokens: int,
) -> None:
    """Answer the files of ``source`` in ``output``; ``options`` are those of ``load``.

    Raises:
        ConfigError: an option that makes no sense on several machines.
        TrbertError: as ``predict_files``.
    """
    if has_texts or source in (None, "-"):
        raise ConfigError("--engine ray reads files: give --input a file, a folder or a URL")
    if output is None:
        raise ConfigError("--engine ray writes files: give --output a folder or a URL")
    if options["backend"] not in _BACKENDS:
        raise ConfigError(
            f"--engine ray runs no backend {options['backend']}: expected {' or '.join(_BACKENDS)}"
        )
    if point.latency_budget_ms is not None or point.dense_below == "auto":
        raise ConfigError(
            "--engine ray measures nothing, since machines differ: leave out --latency-budget, "
            "and give --dense-below a number"
        )
    from trbert_deploy.runtime.many_files import Place
    from trbert_deploy.runtime.on_ray import Job, predict_files

    job = Job(
        bundle=bundle.absolute(),
        source=Place.named(str(source)),
        target=Place.named(output),
        columns=columns,
        options=options,
        kept=kept,
        dense=dense,
        threads=max(1, threads),
        batch_size=batch_size,
        max_batch_tokens=max_batch_tokens,
    )
    with console.progress() as progress:
        outcome = predict_files(job, workers, progress)
    if outcome.cut:
        console.notes.print(f"{outcome.cut} of {outcome.encoded} texts were cut")
