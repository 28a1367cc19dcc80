"""Masked words as the pipeline of transformers fills them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tokenizers import Encoding

from trbert_deploy.bounds import require_whole
from trbert_deploy.errors import ConfigError, DataError
from trbert_deploy.runtime.drop_in.drop_in import DropIn, Options
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.tasks.examples import Text
from trbert_deploy.tasks.fill_mask import MOST_WORDS, TOP, FillMask
from trbert_deploy.tasks.outputs import Outputs


@dataclass(frozen=True, kw_only=True)
class FillOptions(Options):
    """What a call takes.

    Attributes:
        top_k: words that are given for a mask, the most probable first.
        targets: a word, or words, that alone are given, with their probabilities among all words.
    """

    top_k: int = 5
    targets: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole(TOP, self.top_k, 1, MOST_WORDS)
        given: object = self.targets
        words = given if isinstance(given, list | tuple) else [given]
        if given is not None and not (words and all(isinstance(word, str) for word in words)):
            raise ConfigError(f"targets is {given!r}: expected a word, or a list of words")

    @property
    def words(self) -> Sequence[str]:
        """The targets; none where all words are given."""
        return [self.targets] if isinstance(self.targets, str) else self.targets or ()


class FillMaskDropIn(DropIn):
    """The words of each mask."""

    name = FillMask.name
    tasks = (FillMask.name,)
    options_type = FillOptions

    def __init__(self, model: Pipeline, **options: Any) -> None:
        super().__init__(model, **options)
        self._tokens(self.options)

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """As ``DropIn``; of a list of one text its answer alone, as in transformers.

        Raises:
            ConfigError: a target that is not one token, besides.
        """
        self._tokens(self.options.updated(options))
        found = super().__call__(inputs, **options)
        return found[0] if isinstance(inputs, list) and len(inputs) == 1 else found

    def text_of(self, given: Any, name: str) -> Text:
        if not isinstance(given, str):
            raise DataError(f"{name} is of type {type(given).__name__}: expected a string")
        return given

    def answer(
        self, outputs: Outputs, encoding: Encoding, text: Text, options: Any
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """``score``, ``token``, ``token_str`` and ``sequence`` of each word; of several masks a
        list for each.
        """
        among = self._tokens(options)
        fills = self._task.fills(outputs, encoding, options.top_k, among or None)
        told = [[asdict(each) for each in words] for words in fills]
        return told[0] if len(told) == 1 else told

    @property
    def _task(self) -> FillMask:
        task = self.model.task
        assert isinstance(task, FillMask)  # by its name
        return task

    def _tokens(self, options: Any) -> list[int]:
        """The tokens of the targets, by the rule of transformers, but for words of several tokens.

        Raises:
            ConfigError: one is not one token, or is none of those that the model chooses among.
        """
        task, found = self._task, []
        for word in options.words:
            token = task.spelling.id_of(word)
            if token is None:
                ids = task.spelling.ids(word)
                token = ids[0] if len(ids) == 1 else None
            if token is None:
                raise ConfigError(
                    f"the target {word!r} is not one token of the model's: expected words of one"
                )
            if task.words and token not in task.word_ids:
                raise ConfigError(
                    f"the target {word!r} is none of the words that {self.model.path} chooses among"
                )
            found.append(token)
        return found
