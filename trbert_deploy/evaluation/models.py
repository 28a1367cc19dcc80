"""Opens what is evaluated: a bundle, or a checkpoint without an export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trbert_deploy.bundle.manifest import MANIFEST
from trbert_deploy.errors import ConfigError
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.runtime.backends.registry import AUTO, DEFAULT_BACKEND, require_precision
from trbert_deploy.runtime.loading import load
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.selection.operating_point import OperatingPoint

#: What every checkpoint directory holds, and no bundle.
HF_CONFIG = "config.json"


def open_models(
    path: Path,
    teacher: Path | None = None,
    backend: str | None = None,
    *,
    threads: int = 0,
    precision: str | None = None,
    engines: bool = True,
    task: str | None = None,
    point: OperatingPoint = OperatingPoint(),
    note: Callable[[str], None] = lambda message: None,
    progress: Progress = no_progress,
) -> tuple[Pipeline, Pipeline | None]:
    """Open a model and its teacher, both on one backend, so that their times compare.

    Args:
        path, teacher: bundles, checkpoints of ``trbert-deploy train``, or other fine-tuned
            checkpoints of a supported family, which have no cuts.
        backend: the one to run on; by default PyTorch if there is a checkpoint, which nothing
            else runs, and ONNX Runtime otherwise.
        threads: threads of one graph; 0 lets the backend choose.
        precision: one that the backend can be asked for (``PRECISIONS``); None is its own choice.
        engines: allow the bundles' engines to run.
        task: that the models are asked for; their own where None.
        point: operating point to run at, instead of the model's own.
        note: told what a person should know.
        progress: told while files are read, and while something is measured.

    Raises:
        ConfigError: another backend for a checkpoint, a precision that the backend lacks, or a
            budget that is no multiple of what a cut rounds to, or a model for another task.
        StorageError, BundleError, CheckpointError: no model there, or a damaged one.
        MissingDependencyError, DeviceError, EngineError: the backend cannot run here.
    """
    checkpoints = [given for given in (path, teacher) if given and _is_checkpoint(given)]
    if checkpoints and backend not in (None, "torch"):
        raise ConfigError(
            f"{checkpoints[0]} is a checkpoint, which runs on the backend torch alone: for "
            f"{backend} make a bundle of it first, with trbert-deploy export {checkpoints[0]}"
        )
    backend = backend or ("torch" if checkpoints else DEFAULT_BACKEND)
    require_precision(backend, precision)
    pipeline = _open(path, backend, threads, precision, engines, task, note, progress)
    if backend == AUTO:  # the teacher runs on what was chosen for the model
        chosen = pipeline.chain.backend.description
        backend, precision = chosen["backend"], chosen["precision"]
    pipeline = pipeline.at(point, note, progress)
    if teacher is None:
        return pipeline, None
    return pipeline, _open(teacher, backend, threads, precision, engines, task, note, progress)


def _open(
    path: Path,
    backend: str,
    threads: int,
    precision: str | None,
    engines: bool,
    task: str | None,
    note: Callable[[str], None],
    progress: Progress,
) -> Pipeline:
    if not _is_checkpoint(path):
        found = load(
            path,
            backend,
            threads=threads,
            precision=precision,
            engines=engines,
            note=note,
            progress=progress,
        )
        if task not in (None, found.task.name):
            raise ConfigError(
                f"{path} is a bundle for {found.task.name}: for {task} export its checkpoint with "
                f"--task {task}"
            )
        return found
    from trbert_deploy.modeling.checkpoints.pipeline import load_checkpoint_pipeline

    progress(f"read {path.name or path}", 0, None)
    return load_checkpoint_pipeline(path, threads=threads, task=task)


def _is_checkpoint(path: Path) -> bool:
    return (path / HF_CONFIG).is_file() and not (path / MANIFEST).is_file()
