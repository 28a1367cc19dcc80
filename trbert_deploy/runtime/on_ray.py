"""Predictions over many files on the machines of a Ray cluster.

A worker takes a piece of a file, and writes its answers in one step. So a piece is done or not,
whoever is killed, and one that is done twice has the same answers.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util import ActorPool

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.errors import BundleError, TrbertError
from trbert_deploy.progress import Progress
from trbert_deploy.runtime.file_pieces import PIECE_BYTES, Piece, fetch_piece, pieces_of
from trbert_deploy.runtime.loading import load
from trbert_deploy.runtime.many_files import (
    ENDING,
    MARKER,
    Place,
    finished,
    input_files,
    marker_of,
    require_apart,
)
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.runtime.predicting import predict_lines
from trbert_deploy.runtime.reading.examples import read_examples
from trbert_deploy.tasks.columns import ColumnNames

#: Bytes of the local cluster's object store, which nothing of size goes through.
_STORE_BYTES = 100 << 20
#: How often a piece is begun anew whose worker was killed.
_RETRIES = 3


@dataclass(frozen=True)
class Job:
    """What workers do with a piece of a file.

    Attributes:
        bundle: its directory, which all machines see.
        options: of ``load``.
        threads: of a worker, which are its share of the cluster's processors.
        piece_bytes: of a large file, which a worker takes at a time.
    """

    bundle: Path
    source: Place
    target: Place
    columns: ColumnNames
    options: Mapping[str, Any]
    kept: bool
    dense: bool
    threads: int
    batch_size: int
    max_batch_tokens: int
    piece_bytes: int = PIECE_BYTES

    def answers_depend_on(self) -> dict[str, Any]:
        """What the files of answers depend on besides bundle and texts."""
        more = {"columns": asdict(self.columns), "kept": self.kept, "dense": self.dense}
        more["piece_bytes"] = self.piece_bytes
        return {**self.options, **more}


@dataclass(frozen=True)
class Outcome:
    """What became of a piece: texts that were encoded and cut, or why there are no answers."""

    encoded: int = 0
    cut: int = 0
    problem: str | None = None


class Worker:
    """Holds the model, which it opens with its first piece: an error is then told as of a piece."""

    def __init__(self, job: Job, digest: str) -> None:
        self._job = job
        self._digest = digest
        self._pipeline: Pipeline | None = None

    def predict(self, piece: Piece) -> Outcome:
        """Answer a piece of a file."""
        try:
            return self._predict(piece)
        except TrbertError as problem:  # as text: not every error can be sent
            return Outcome(problem=str(problem))

    def _predict(self, piece: Piece) -> Outcome:
        job = self._job
        pipeline = self._pipeline = self._pipeline or self._opened()
        tokenizer = pipeline.tokenizer
        encoded, cut = tokenizer.encoded, tokenizer.truncated
        with tempfile.TemporaryDirectory() as scratch:
            texts = fetch_piece(job.source, piece, Path(scratch))
            made = Path(scratch) / "answers"
            examples = read_examples(
                texts,
                pipeline.task,
                job.columns,
                with_targets=False,
                whole=True,
                goes_on=piece.is_later,
            )
            lines = predict_lines(
                pipeline,
                examples,
                batch_size=job.batch_size,
                return_kept=job.kept,
                dense=job.dense,
            )
            with made.open("w", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
            job.target.put(piece.name + ENDING, made)
        return Outcome(tokenizer.encoded - encoded, tokenizer.truncated - cut)

    def _opened(self) -> Pipeline:
        job = self._job
        pipeline = load(
            job.bundle,
            threads=job.threads,
            max_batch_tokens=job.max_batch_tokens,
            **job.options,
        )
        if pipeline.require_bundle().digest != self._digest:
            raise BundleError(
                f"{job.bundle} is another bundle than when the run began: expected the same one "
                "on all machines, until its end"
            )
        return pipeline


def predict_files(job: Job, workers: int | None, progress: Progress) -> Outcome:
    """Answer all files that are not answered yet.

    Args:
        workers: how many there are; None for as many as the cluster has processors for.
        progress: told how many pieces are done.

    Returns:
        The texts that were encoded and cut in this run.

    Raises:
        TrbertError: a worker's, which ends the run; finished pieces stay.
        BundleError, DataError, StorageError, ConfigError: there is no such bundle, or as
            ``input_files`` and ``finished``.
    """
    digest = Bundle.open(job.bundle).digest
    require_apart(job.source, job.target)
    files = input_files(job.source)
    # As JSON has it, so that it compares with what is read.
    marker = json.loads(json.dumps(marker_of(digest, job.answers_depend_on(), files)))
    pieces = pieces_of(job.source, files, job.piece_bytes)
    done = finished(job.target, marker, {piece.name for piece in pieces})
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / MARKER
        made.write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
        job.target.put(MARKER, made)
    waiting = [piece for piece in pieces if piece.name not in done]
    progress("predict", len(done), len(pieces))
    if not waiting:
        return Outcome()
    _connect()
    most = workers or max(1, int(ray.cluster_resources().get("CPU", 1)) // job.threads)
    actor = ray.remote(Worker).options(
        num_cpus=job.threads, max_restarts=-1, max_task_retries=_RETRIES
    )
    actors = [actor.remote(job, digest) for _ in range(min(most, len(waiting)))]
    encoded = cut = 0
    try:
        outcomes = ActorPool(actors).map_unordered(
            lambda worker, piece: worker.predict.remote(piece), waiting
        )
        for count, outcome in enumerate(outcomes, start=len(done) + 1):
            if outcome.problem is not None:
                raise TrbertError(outcome.problem)
            encoded, cut = encoded + outcome.encoded, cut + outcome.cut
            progress("predict", count, len(pieces))
    except RayActorError:
        raise TrbertError(
            f"a worker ended {_RETRIES + 1} times with one piece of a file: see Ray's logs (it may "
            "lack memory: lower --max-batch-tokens or --workers), then give the same command again"
        ) from None
    finally:
        for each in actors:
            ray.kill(each)
    return Outcome(encoded, cut)


def _connect() -> None:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine."""
    if ray.is_initialized():
        return
    if "RAY_ADDRESS" in os.environ:
        ray.init(logging_level="ERROR", log_to_driver=False)
    else:
        ray.init(
            "local",
            include_dashboard=False,
            object_store_memory=_STORE_BYTES,
            logging_level="ERROR",
            log_to_driver=False,
        )
