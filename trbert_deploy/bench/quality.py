"""Evaluates a bundle on labelled texts: the dense model and the chain on the same rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.errors import DataError
from trbert_deploy.flops import speedup
from trbert_deploy.progress import Progress, no_progress
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.runtime.reading import NamedText

RESAMPLES = 2000
CALIBRATION_BINS = 10


@dataclass(frozen=True)
class ModelQuality:
    """How good one model's answers are.

    Attributes:
        accuracy: share of right labels.
        macro_f1: F1 of each label that occurs or is answered, averaged.
        calibration_error: mean distance of confidence and accuracy over ten equal bins of
            confidence, weighted by their rows (Naeini et al. 2015).
        seconds: time in the chain, without tokenizing.
    """

    accuracy: float
    macro_f1: float
    calibration_error: float
    seconds: float


@dataclass(frozen=True)
class QualityReport:
    """Both models on the same rows.

    Attributes:
        rows: how many.
        tokens_per_row: mean, special tokens included.
        dense, reduced: their quality.
        accuracy_change: reduced minus dense, in points.
        interval: 95 % interval of that change, by paired bootstrap over the rows.
        label_agreement: share of rows with the same label.
        kept_share: for each cut the tokens left, as a share of all tokens.
        flops_speedup: FLOPs of the dense model over the chain's.
        measured_speedup: ratio of the two times.
    """

    rows: int
    tokens_per_row: float
    dense: ModelQuality
    reduced: ModelQuality
    accuracy_change: float
    interval: tuple[float, float]
    label_agreement: float
    kept_share: tuple[float, ...]
    flops_speedup: float
    measured_speedup: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def evaluate_quality(
    pipeline: Pipeline,
    texts: Sequence[NamedText],
    *,
    batch_size: int = 8,
    progress: Progress = no_progress,
) -> QualityReport:
    """Run both models over labelled texts, batch by batch in turns.

    Raises:
        DataError: no texts, or a text without a label that the model knows.
    """
    truth = _labels(pipeline, texts)
    logits: dict[str, list[NDArray[np.float32]]] = {"dense": [], "reduced": []}
    seconds = {"dense": 0.0, "reduced": 0.0}
    lengths = []
    for start in range(0, len(texts), batch_size):
        part = texts[start : start + batch_size]
        names = [named.name for named in part]
        rows = pipeline.tokenizer.rows(
            pipeline.tokenizer.encode([named.text for named in part], names)
        )
        for name in logits:
            begin = time.perf_counter()
            results = pipeline.run(rows, dense=name == "dense")
            seconds[name] += time.perf_counter() - begin
            logits[name] += [result.logits for result in results]
        lengths += [
            [len(row), *map(len, result.kept)] for row, result in zip(rows, results, strict=True)
        ]
        progress("evaluate", min(start + batch_size, len(texts)), len(texts))
    answers = {name: np.stack(values) for name, values in logits.items()}
    right = {name: values.argmax(1) == truth for name, values in answers.items()}
    totals = [sum(column) for column in zip(*lengths, strict=True)]
    manifest = pipeline.bundle.manifest
    qualities = {
        name: ModelQuality(
            float(right[name].mean()),
            macro_f1(truth, answers[name].argmax(1)),
            calibration_error(answers[name], truth),
            seconds[name],
        )
        for name in answers
    }
    change = 100.0 * (right["reduced"].astype(float) - right["dense"])
    return QualityReport(
        rows=len(texts),
        tokens_per_row=totals[0] / len(texts),
        dense=qualities["dense"],
        reduced=qualities["reduced"],
        accuracy_change=float(change.mean()),
        interval=bootstrap_interval(change),
        label_agreement=float((answers["dense"].argmax(1) == answers["reduced"].argmax(1)).mean()),
        kept_share=tuple(left / totals[0] for left in totals[1:]),
        flops_speedup=speedup(manifest.encoder, pipeline.reduction, lengths),
        measured_speedup=seconds["dense"] / seconds["reduced"],
    )


def _labels(pipeline: Pipeline, texts: Sequence[NamedText]) -> NDArray[np.int64]:
    """The index of each text's label."""
    if not texts:
        raise DataError("no texts to evaluate: expected labelled ones")
    index = {label: place for place, label in enumerate(pipeline.labels)}
    for named in texts:
        if named.label is None:
            raise DataError(f'{named.name}: expected a field "label" beside the text')
        if named.label not in index:
            raise DataError(
                f"{named.name}: the model does not know the label {named.label!r} "
                f"(it knows {', '.join(index)})"
            )
    return np.array([index[str(named.label)] for named in texts])


def macro_f1(truth: NDArray[np.int64], answers: NDArray[np.int64]) -> float:
    """F1 averaged over the labels that occur in ``truth`` or ``answers``, [N] each."""
    scores = []
    for label in np.union1d(truth, answers):
        hits = int(((truth == label) & (answers == label)).sum())
        scores.append(2 * hits / int((truth == label).sum() + (answers == label).sum()))
    return float(np.mean(scores))


def calibration_error(logits: NDArray[np.float32], truth: NDArray[np.int64]) -> float:
    """Expected calibration error of the most probable label; logits [N, C], truth [N]."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    confidence = (shifted / shifted.sum(1, keepdims=True)).max(1)
    right = logits.argmax(1) == truth
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, confidence - right, CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(truth))


def bootstrap_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the mean of ``values`` [N], by resampling them."""
    rng = np.random.default_rng(0)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
