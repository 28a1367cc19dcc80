"""Text classification as the pipeline of transformers has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from tokenizers import Encoding

from trbert_deploy.bounds import MOST_TEXTS, require_whole
from trbert_deploy.errors import ConfigError, DataError
from trbert_deploy.runtime.drop_in.drop_in import DropIn, Options
from trbert_deploy.tasks.activations import ACTIVATIONS, IDENTITY, SIGMOID, SOFTMAX
from trbert_deploy.tasks.examples import Text
from trbert_deploy.tasks.outputs import Outputs
from trbert_deploy.tasks.text_classification import TextClassification, logits_of
from trbert_deploy.tasks.text_ranking import TextRanking

FUNCTIONS = {"sigmoid": SIGMOID, "softmax": SOFTMAX, "none": IDENTITY}


@dataclass(frozen=True, kw_only=True)
class ClassificationOptions(Options):
    """What a call takes.

    Attributes:
        top_k: give so many labels, the most probable first; all of them where None. Where nothing
            is said, the first one alone, and in no list.
        function_to_apply: what makes scores of logits, instead of what the checkpoint says:
            ``sigmoid``, ``softmax`` or ``none``.
    """

    top_k: int | Literal[""] | None = ""  # as transformers says that nothing is said
    function_to_apply: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k not in ("", None):
            require_whole("top_k", self.top_k, 1, MOST_TEXTS)
        self.activation()

    def activation(self) -> str | None:
        """What makes scores, if it is said.

        Raises:
            ConfigError: ``function_to_apply`` is unknown.
        """
        name = self.function_to_apply
        if name is None:
            return None
        if not isinstance(name, str) or name.lower() not in FUNCTIONS:
            raise ConfigError(
                f"function_to_apply is {name!r}: expected one of {', '.join(FUNCTIONS)}"
            )
        return FUNCTIONS[name.lower()]


class TextClassificationDropIn(DropIn):
    """Labels with their scores; a reranker's one label, too, by a sigmoid."""

    name = TextClassification.name
    tasks = (TextClassification.name, TextRanking.name)
    options_type = ClassificationOptions

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """One text's answer is in a list, unless ``top_k`` is said; see ``DropIn``."""
        answer = super().__call__(inputs, **options)
        return [answer] if isinstance(inputs, str) and "top_k" not in options else answer

    def text_of(self, given: Any, name: str) -> Text:
        """Of a string, ``{"text": ..., "text_pair": ...}``, or ``[[text, pair]]``."""
        if isinstance(given, str):
            return given
        if isinstance(given, Mapping) and {"text"} <= set(given) <= {"text", "text_pair"}:
            text, pair = given["text"], given.get("text_pair")
            return text if pair is None else (text, pair)
        if isinstance(given, list) and len(given) == 1 and isinstance(given[0], list):
            return given[0]
        raise DataError(
            f"{name} is of type {type(given).__name__}: expected a string, or a dictionary with "
            "text and text_pair alone"
        )

    def answer(
        self, outputs: Outputs, encoding: Encoding, text: Text, options: ClassificationOptions
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """``label`` and ``score``, or a list of them (see ``ClassificationOptions.top_k``)."""
        logits = logits_of(outputs, len(self.model.labels))
        activation = options.activation() or self._own_activation
        scores = ACTIVATIONS[activation](logits).astype(np.float32)
        pairs = zip(self.model.labels, map(float, scores), strict=True)
        ranked = sorted(pairs, key=lambda pair: -pair[1])
        answers = [{"label": label, "score": score} for label, score in ranked]
        return answers[0] if options.top_k == "" else answers[: options.top_k]

    @property
    def _own_activation(self) -> str:
        """The model's; transformers does not read what a reranker's files say of its score."""
        task = self.model.task
        return SIGMOID if task.name == TextRanking.name else task.activation
