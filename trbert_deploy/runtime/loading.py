"""Opens a bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from trbert_deploy.bounds import MOST_TOKENS, require_whole
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import LEXICON
from trbert_deploy.files import read_directory
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.runtime.autotune.fastest_backend import choose_backend
from trbert_deploy.runtime.backends.backend import BackendOptions
from trbert_deploy.runtime.backends.registry import (
    AUTO,
    DEFAULT_BACKEND,
    open_backend,
    require_no_engines,
    require_precision,
)
from trbert_deploy.runtime.chain import MAX_BATCH_TOKENS, Chain
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.runtime.tokenizing import tokenizer_of
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.tasks.registry import task_of


def load(
    bundle: str | Path | Bundle = "bundle",
    backend: str = DEFAULT_BACKEND,
    *,
    threads: int = 0,
    precision: str | None = None,
    truncate: bool = True,
    max_length: int | None = None,
    threshold: float | None = None,
    ratio: float | None = None,
    max_tokens: int | None = None,
    round_to: int | None = None,
    latency_budget_ms: float | None = None,
    dense_below: int | Literal["auto"] | None = None,
    exit_confidence: float | None = None,
    exit_patience: int | None = None,
    dimensions: int | None = None,
    prompt: str | None = None,
    aggregation_strategy: str | None = None,
    top_k: int | None = None,
    max_answer_len: int | None = None,
    handle_impossible_answer: bool | None = None,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    engines: bool = True,
    verify: bool = True,
    note: Callable[[str], None] = lambda message: None,
    progress: Progress = no_progress,
) -> Pipeline:
    """Open a bundle.

    Its graphs are opened before this returns, and it goes on with them when the directory is
    replaced.

    Args:
        bundle: its directory, or an opened one.
        backend: onnxruntime, openvino, torch or tensorrt; or auto, for the fastest that answers
            as float32 does of onnxruntime, openvino and, where the bundle has engines for the GPU
            here, tensorrt. It is measured once, in some seconds, and remembered in the user's
            cache directory.
        threads: threads of one graph; 0 lets the backend choose.
        precision: one that the backend can be asked for (``BACKENDS``); None is its own choice.
        truncate: cut texts over the maximum length, or else refuse them.
        max_length: most tokens of a row; the bundle's own maximum by default.
        threshold, ratio, max_tokens: one of them, instead of the bundle's rules: the keep
            probability from which a token survives, the share of its tokens that a row keeps at
            each cut, or the most tokens that it keeps there.
        round_to: multiple that the number of survivors is rounded up to, with the row's own next
            best tokens; the bundle's by default. OpenVINO on processors with AMX computes 16
            tokens as fast as one.
        latency_budget_ms: instead of the first three, milliseconds that a row of the longest
            length may take in the median, from tokens to logits: the threshold that drops least
            within them, by latencies that are measured once on this machine, and remembered.
        dense_below: texts of fewer tokens keep all of them, and run in the dense graph, which takes
            memory of its own: three calls on so few tokens can take longer than one. ``auto``
            finds the length from which on the chain is faster, which is measured once on this
            machine, and remembered. 0 by default; ``auto`` with the backend auto.
        exit_confidence, exit_patience: where the model has exits: how sure one must be (from 0 to
            1, which none ever is), or how many of them in a row must agree, for a text to leave
            with the answer of an exit; instead of what the model says. Backends that run the whole
            chain as one answer at its end.
        dimensions: of an embedding, the values that are kept, the first ones (for models that were
            trained for it).
        prompt: of an embedding, the name of what is put before every text, one of the model's
            prompts; its default one where None.
        aggregation_strategy: of tags, how tokens become entities: ``none``, ``simple``, ``first``,
            ``average`` or ``max``; as the checkpoint says where None, as are the next three.
        top_k: of questions, answers that are given.
        max_answer_len: of questions, most tokens of an answer.
        handle_impossible_answer: of questions, whether the answer may be that there is none.
        max_batch_tokens: tokens that are on their way at a time, which bounds the memory; a longer
            text goes alone.
        engines: allow a backend that runs the bundle's engines, and auto to try them. They are
            code: load none from people you do not trust.
        verify: compare the files' SHA-256 with the manifest.
        note: told what a person should know.
        progress: told while files are read, and while something is measured.

    Raises:
        StorageError, BundleError: the directory is missing, no bundle, or damaged.
        ConfigError: unknown backend, an option out of range, a precision that the backend or
            the processor lacks, or a backend that needs the engines that are to be ignored.
        MissingDependencyError: the backend's package is not installed, or that for a lexicon.
    """
    require_whole("max_batch_tokens", max_batch_tokens, 1, MOST_TOKENS)
    point = OperatingPoint(
        threshold,
        ratio,
        max_tokens,
        round_to,
        latency_budget_ms,
        dense_below,
        exit_confidence,
        exit_patience,
    )

    def start(bundle: Bundle) -> Pipeline:
        manifest = bundle.manifest
        tokenizer = tokenizer_of(bundle, max_length, truncate)
        name, options, wanted = backend, BackendOptions(threads, precision), point
        reduction = manifest.reduction.at(point)
        if backend == AUTO:
            require_precision(backend, precision)
            choice = choose_backend(
                bundle, reduction, threads, note, engines=engines, progress=progress
            )
            name, options = choice.backend, BackendOptions(threads, choice.precision)
            if dense_below is None:
                wanted = replace(point, dense_below="auto")
        if not engines:
            require_no_engines(name)
        runner = open_backend(name, bundle, options)
        chain = Chain(
            runner,
            manifest.reduction,
            manifest.encoder.num_layers,
            max_batch_tokens,
            task=task_of(manifest.encoder),
        )
        pipeline = Pipeline(bundle.path, manifest.encoder, tokenizer, chain, bundle)
        if LEXICON in manifest.files:
            progress("read lexicon", 0, None)
            pipeline = pipeline.with_lexicon(bundle.lexicon(), str(bundle.path))
        pipeline = pipeline.set_up(
            dimensions=dimensions,
            prompt=prompt,
            aggregation_strategy=aggregation_strategy,
            top_k=top_k,
            max_answer_len=max_answer_len,
            handle_impossible_answer=handle_impossible_answer,
        )
        pipeline = pipeline.at(wanted, note, progress)
        progress("open graphs", 0, None)
        pipeline.chain.open()
        return pipeline

    if isinstance(bundle, Bundle):
        return start(bundle)
    path = Path(bundle)
    progress(f"read {path.name or path}", 0, None)
    # Replaced meanwhile, it is begun anew with what is there then.
    return read_directory(path, lambda: start(Bundle.open(path, verify=verify)))
