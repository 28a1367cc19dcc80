"""Feature extraction: sentence embeddings, of the first token or of all tokens of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from trbert_deploy.bounds import require_whole
from trbert_deploy.config import EncoderSpec
from trbert_deploy.errors import ConfigError, DataError, OutputError
from trbert_deploy.tasks.columns import Columns, text_of
from trbert_deploy.tasks.examples import Example, Text
from trbert_deploy.tasks.outputs import Output, Outputs, require_numbers
from trbert_deploy.tasks.predictions import Prediction
from trbert_deploy.tasks.task import AGREEMENT, NewHead, Targets, Task

EMBEDDING = "sentence_embedding"
Pooling = Literal["first", "mean", "max"]
#: Entries of ``EncoderSpec.answers``: which states make the embedding, whether it gets the length
#: 1, what is put before a text by the name of its use, and which of these names stands for texts
#: of no named use.
POOLING, NORMALIZE, PROMPTS, DEFAULT_PROMPT = "pooling", "normalize", "prompts", "default_prompt"
#: Options: values of an embedding that are kept, and the name of what is put before every text.
DIMENSIONS, PROMPT = "dimensions", "prompt"
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class EmbeddingPrediction(Prediction):
    """Where a text stands among others.

    Attributes:
        embedding: [D].
    """

    embedding: tuple[float, ...]


class FeatureExtraction(Task):
    """An embedding for each text.

    Args:
        pooling: which states make it: that of the first token, or mean or largest of all.
        normalize: whether it gets the length 1.
        prompts: what to put before a text, by the name of its use.
        default_prompt: the name for texts of no named use; None for no prompt.
        width: H, its values before it is shortened.

    Attributes:
        dimensions: of its values, how many are kept; None for all.
        prompt: what is put before every text.

    Raises:
        ConfigError: an unknown pooling, or a prompt that is not there.
    """

    name = "feature-extraction"
    measure = AGREEMENT
    options = (DIMENSIONS, PROMPT)
    takes_pairs = False

    def __init__(
        self,
        pooling: Pooling = "mean",
        normalize: bool = True,
        prompts: Mapping[str, str] | None = None,
        default_prompt: str | None = None,
        width: int = 0,
    ) -> None:
        if pooling not in get_args(Pooling):
            raise ConfigError(
                f"the pooling is {pooling!r}: expected one of {', '.join(get_args(Pooling))}"
            )
        self.pooling = pooling
        self.normalize = normalize
        self.prompts = dict(prompts or {})
        self.width = width
        self.dimensions: int | None = None
        self.prompt = "" if default_prompt is None else self.prompt_named(default_prompt)
        self.outputs = (Output(EMBEDDING, "row" if pooling == "first" else pooling),)

    @classmethod
    def of(cls, spec: EncoderSpec) -> Self:
        answers = spec.answers
        return cls(
            answers.get(POOLING, "mean"),
            answers.get(NORMALIZE, False),
            answers.get(PROMPTS),
            answers.get(DEFAULT_PROMPT),
            spec.hidden_size,
        )

    def prompt_named(self, name: str) -> str:
        """What is put before texts of a use.

        Raises:
            ConfigError: the model has no prompt of that name.
        """
        if name not in self.prompts:
            known = ", ".join(self.prompts) or "no prompts"
            raise ConfigError(f"the model has no prompt {name!r}: it has {known}")
        return self.prompts[name]

    def with_options(self, chosen: Mapping[str, Any]) -> Self:
        changed = copy(self)
        if DIMENSIONS in chosen:
            require_whole(DIMENSIONS, chosen[DIMENSIONS], 1, self.width)
            changed.dimensions = chosen[DIMENSIONS]
        if PROMPT in chosen:
            changed.prompt = self.prompt_named(chosen[PROMPT])
        return changed

    def input_of(self, text: Text) -> Text:
        return self.prompt + text if self.prompt and isinstance(text, str) else text

    @classmethod
    def read(cls, record: Mapping[str, Any], name: str, columns: Columns) -> Example:
        text = text_of(record, name, columns)
        if not isinstance(text, str):
            raise DataError(
                f"{name} is a pair of texts: expected one, as an embedding is of one; name its "
                "column with --text-column"
            )
        return Example(text, name=name)

    @classmethod
    def new_head(cls, examples: Sequence[Example]) -> NewHead:
        raise DataError(
            "embeddings are not learned from labels: give a sentence encoder, whose embeddings "
            "can be learned"
        )

    def require_names(self, labels: Sequence[str], where: str) -> None:
        if labels:
            raise DataError(f"{where} makes embeddings: expected texts without labels")

    def decode(self, outputs: Outputs, encoding: Any, text: Text = "") -> EmbeddingPrediction:
        values = self.embedding(outputs)
        return EmbeddingPrediction(
            num_tokens=len(encoding.ids), embedding=tuple(map(float, values))
        )

    def embedding(self, outputs: Outputs) -> NDArray[np.float32]:
        """The embedding [D], shortened (Matryoshka, Kusupati et al. 2022) before it is normalized.

        Raises:
            OutputError: a value is no finite number, or there are not as many as the model has.
        """
        require_numbers(outputs)
        values = outputs[EMBEDDING]
        if values.shape != (self.width,):
            raise OutputError(
                f"the model's embedding has the shape {list(values.shape)}: expected [{self.width}]"
            )
        values = values[: self.dimensions]
        return of_length_one(values) if self.normalize else values

    def agreement(self, one: Outputs, other: Outputs) -> float:
        """Cosine of the two, at least 0; what is no number agrees with nothing."""
        cosine = _cosine(one[EMBEDDING], other[EMBEDDING])
        return min(1.0, max(0.0, cosine)) if np.isfinite(cosine) else 0.0

    def divergence(self, teacher: Outputs, student: Outputs) -> float:
        """1 less the cosine."""
        return max(0.0, 1.0 - _cosine(teacher[EMBEDDING], student[EMBEDDING]))

    def summary(self, prediction: Prediction) -> str:
        assert isinstance(prediction, EmbeddingPrediction)
        return "".join(f"{value:.2f} " for value in prediction.embedding[:_SHOWN]) + "..."

    def require_like(self, other: Task, name: str) -> None:
        super().require_like(other, name)
        if getattr(other, "width", self.width) != self.width:
            raise DataError(
                f"{name} makes embeddings of {self.width} values: expected as many as the model"
            )

    def no_target(self, encoding: Any = None) -> NDArray[np.float32]:
        return np.full((), np.nan, np.float32)

    def targets(self, examples: Sequence[Example], encodings: Sequence[Any] = ()) -> Targets:
        raise DataError("embeddings have no labels: expected texts alone")

    def metrics(self, outputs: Sequence[Outputs], targets: Targets) -> dict[str, float]:
        raise DataError("embeddings have no labels to be judged by: expected texts alone")

    def statistics(self, outputs: Sequence[Outputs], targets: Targets) -> NDArray[np.float64]:
        raise DataError("embeddings have no labels to be judged by: expected texts alone")


def of_length_one(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Embeddings [..., D] normalized; one of zeros stays."""
    return embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True).clip(min=1e-12)


def _cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    ours, theirs = one.astype(np.float64), other.astype(np.float64)
    length = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    return float(ours @ theirs) / max(length, 1e-12)
