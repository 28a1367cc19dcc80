"""Token classification as the pipeline of transformers has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tokenizers import Encoding

from trbert_deploy.errors import ConfigError, DataError
from trbert_deploy.runtime.drop_in.drop_in import DropIn, Options
from trbert_deploy.tasks.chunks import OUTSIDE
from trbert_deploy.tasks.entities import NONE
from trbert_deploy.tasks.examples import Text
from trbert_deploy.tasks.outputs import Outputs
from trbert_deploy.tasks.token_classification import TokenClassification, require_aggregation


@dataclass(frozen=True, kw_only=True)
class TokenOptions(Options):
    """What a call takes.

    Attributes:
        aggregation_strategy: how tokens are made entities: ``none``, ``simple``, ``first``,
            ``average`` or ``max``.
        ignore_labels: labels, or types of entities, that are left out.
    """

    aggregation_strategy: str = NONE
    ignore_labels: Sequence[str] = (OUTSIDE,)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_aggregation(self.aggregation_strategy)
        ignored: object = self.ignore_labels
        if not isinstance(ignored, list | tuple) or not all(isinstance(e, str) for e in ignored):
            raise ConfigError(f"ignore_labels is {ignored!r}: expected a list of labels")


class TokenClassificationDropIn(DropIn):
    """The entities of a text, or its tokens with their labels."""

    name = TokenClassification.name
    tasks = (TokenClassification.name,)
    options_type = TokenOptions

    def text_of(self, given: Any, name: str) -> Text:
        if not isinstance(given, str):
            raise DataError(f"{name} is of type {type(given).__name__}: expected a string")
        return given

    def answer(
        self, outputs: Outputs, encoding: Encoding, text: Text, options: TokenOptions
    ) -> list[dict[str, Any]]:
        """``entity`` or ``entity_group``, ``score``, ``index`` of a token, ``word``, ``start`` and
        ``end`` of each.
        """
        task = self.model.task
        assert isinstance(task, TokenClassification)  # by its name
        found = task.entities(
            outputs, encoding, text, options.aggregation_strategy, options.ignore_labels
        )
        return [asdict(each) for each in found]
