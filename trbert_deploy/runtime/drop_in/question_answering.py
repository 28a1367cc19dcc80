"""Question answering as the pipeline of transformers 4 has it, which version 5 has no more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tokenizers import Encoding

from trbert_deploy.errors import DataError
from trbert_deploy.runtime.drop_in.drop_in import DropIn, Options
from trbert_deploy.tasks.examples import Text
from trbert_deploy.tasks.outputs import Outputs
from trbert_deploy.tasks.question_answering import QuestionAnswering

_KEYS = {"question", "context"}


@dataclass(frozen=True, kw_only=True)
class AnswerOptions(Options):
    """What a call takes.

    Attributes:
        top_k: answers that are given, the most probable first; one alone is in no list.
        max_answer_len: most tokens of an answer.
        handle_impossible_answer: let the answer be that there is none.
    """

    top_k: int = 1
    max_answer_len: int = 15
    handle_impossible_answer: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.task()

    def task(self) -> QuestionAnswering:
        """The task with these options.

        Raises:
            ConfigError: one is out of range.
        """
        return QuestionAnswering(self.handle_impossible_answer, self.max_answer_len, self.top_k)


class QuestionAnsweringDropIn(DropIn):
    """The part of a context that answers a question."""

    name = QuestionAnswering.name
    tasks = (QuestionAnswering.name,)
    options_type = AnswerOptions

    def __call__(
        self, inputs: Any = None, *, question: Any = None, context: Any = None, **options: Any
    ) -> Any:
        """Answer ``{"question": ..., "context": ...}``, a list of such (see ``DropIn``), or what is
        given by these names: a question, or a list of them, and a context, or one for each.

        Raises:
            DataError: both, neither, or lists of different lengths.
        """
        named = question is not None and context is not None
        if named == (inputs is not None):
            raise DataError("expected a question and its context, by these names or in an input")
        if named:
            inputs = _paired(question, context)
        found = super().__call__(inputs, **options)
        # as in transformers, where a list of one question is no list
        return found[0] if isinstance(inputs, list) and len(inputs) == 1 else found

    def text_of(self, given: Any, name: str) -> Text:
        if not isinstance(given, Mapping) or set(given) != _KEYS:
            raise DataError(
                f"{name} is of type {type(given).__name__}: expected a dictionary with question "
                "and context alone"
            )
        return given["question"], given["context"]

    def answer(
        self, outputs: Outputs, encoding: Encoding, text: Text, options: AnswerOptions
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """``score``, ``start``, ``end`` and ``answer``, or a list of them where several are asked
        for and found.
        """
        answers = options.task().answers(outputs, encoding, text)
        told = [asdict(each) for each in answers]
        return told[0] if len(told) == 1 else told


def _paired(question: Any, context: Any) -> Any:
    """Questions and contexts that were given by their names, as inputs."""
    if not isinstance(question, list):
        return {"question": question, "context": context}
    contexts = context if isinstance(context, list) else [context] * len(question)
    if len(contexts) != len(question):
        raise DataError(
            f"there are {len(question)} questions with {len(contexts)} contexts: expected one "
            "context, or one for each"
        )
    return [{"question": each, "context": of} for each, of in zip(question, contexts, strict=True)]
