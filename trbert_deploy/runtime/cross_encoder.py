"""Scores of pairs of texts, as the CrossEncoder of sentence-transformers gives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.bounds import MOST_TEXTS, require_whole
from trbert_deploy.errors import ConfigError, DataError, few
from trbert_deploy.runtime.tokenizing import require_texts
from trbert_deploy.tasks.activations import ACTIVATIONS, IDENTITY, SOFTMAX
from trbert_deploy.tasks.examples import Text
from trbert_deploy.tasks.text_classification import logits_of

if TYPE_CHECKING:
    from trbert_deploy.runtime.pipeline import Pipeline

BATCH_SIZE = 32

#: A name of ``ACTIVATIONS``, PyTorch's module of that name, or a function of logits [B, C].
Activation = str | Callable[[Any], Any] | None


def predict(
    model: Pipeline,
    pairs: Sequence[Text] | Text,
    batch_size: int = BATCH_SIZE,
    activation_fn: Activation = None,
    apply_softmax: bool = False,
    label: str | None = None,
    kind: str = "pair",
) -> NDArray[np.float32]:
    """Score pairs (see ``Pipeline.predict``).

    Args:
        kind: what errors call one of them.
    """
    require_whole("batch_size", batch_size, 1, MOST_TEXTS)
    activate = _activation(model, activation_fn, apply_softmax, label)
    if isinstance(pairs, np.ndarray):
        pairs = pairs.tolist()
    require_texts(pairs)
    if len(pairs) and isinstance(pairs[0], str):
        return predict(model, [pairs], batch_size, activation_fn, apply_softmax, label, kind)[0]  # type: ignore[list-item]
    labels, found = model.labels, [np.empty((0, len(model.labels)), np.float32)]
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        names = [f"{kind} {start + place + 1}" for place in range(len(batch))]
        results = model.run(model.tokenize(batch, names))
        found.append(
            activate(np.stack([logits_of(result.outputs, len(labels)) for result in results]))
        )
    scores = np.concatenate(found)
    if label is not None:
        return scores[:, labels.index(label)]
    return scores[:, 0] if len(labels) == 1 else scores


def rank(
    model: Pipeline,
    query: str,
    documents: Sequence[str],
    top_k: int | None = None,
    return_documents: bool = False,
    batch_size: int = BATCH_SIZE,
    activation_fn: Activation = None,
    label: str | None = None,
) -> list[dict[str, Any]]:
    """Rank documents (see ``Pipeline.rank``)."""
    require_texts(documents)
    if not documents:
        raise DataError("no documents to rank: expected at least one")
    if top_k is not None:
        require_whole("top_k", top_k, 1, MOST_TEXTS)
    if label is None and model.task.activation and len(model.labels) > 1:
        raise ConfigError(
            f"the model answers {few(model.labels)}: expected label=, the one of them whose "
            "score documents are ranked by"
        )
    pairs: list[Text] = [(query, document) for document in documents]
    scores = predict(model, pairs, batch_size, activation_fn, label=label, kind="document")
    order = np.argsort(-scores, kind="stable")[:top_k]
    return [
        {"corpus_id": int(place), "score": float(scores[place])}
        | ({"text": documents[place]} if return_documents else {})
        for place in order
    ]


def _activation(
    model: Pipeline, activation_fn: Activation, apply_softmax: bool, label: str | None
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """What makes scores [B, C] of logits [B, C].

    Several logits stay as they are, as in a CrossEncoder, unless probabilities are asked for.

    Raises:
        ConfigError: see ``Pipeline.predict``.
    """
    task = model.task
    if not task.activation:
        raise ConfigError(f"a model for {task.name} does not score pairs: expected a reranker")
    if label is not None and label not in model.labels:
        raise ConfigError(f"label is {label!r}: expected one of {few(model.labels)}")
    apply_softmax = apply_softmax and len(model.labels) > 1
    chosen = activation_fn
    if chosen is None:
        raw = task.activation == SOFTMAX and (label is None or apply_softmax)
        chosen = IDENTITY if raw else task.activation
    name = chosen if isinstance(chosen, str) else type(chosen).__name__
    first = ACTIVATIONS.get(name)
    if first is None and not callable(chosen):
        raise ConfigError(
            f"activation_fn is {chosen!r}: expected one of {', '.join(ACTIVATIONS)}, or a function"
        )

    def activate(logits: NDArray[np.float32]) -> NDArray[np.float32]:
        scores = first(logits) if first is not None else _called(chosen, logits)
        return (ACTIVATIONS[SOFTMAX](scores) if apply_softmax else scores).astype(np.float32)

    return activate


def _called(function: Any, logits: NDArray[np.float32]) -> NDArray[Any]:
    """What a caller's function makes of logits [B, C].

    Raises:
        ConfigError: it takes no arrays, or gives back another shape.
    """
    expected = f"expected a function of numpy arrays, or one of {', '.join(ACTIVATIONS)}"
    try:
        scores = np.asarray(function(logits))
    except TypeError as problem:
        raise ConfigError(f"activation_fn takes no arrays ({problem}): {expected}") from None
    if scores.shape != logits.shape:
        raise ConfigError(
            f"activation_fn makes {list(scores.shape)} of {list(logits.shape)}: {expected}"
        )
    return scores
