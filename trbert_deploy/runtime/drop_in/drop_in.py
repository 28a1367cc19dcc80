"""What the pipelines of transformers have in common: how they are called, and give answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Set
from copy import copy
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import count, islice
from typing import Any, ClassVar, Self

from tokenizers import Encoding

from trbert_deploy.bounds import MOST_TEXTS, require_whole
from trbert_deploy.errors import ConfigError, DataError
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.runtime.tokenizing import tokenizer_of
from trbert_deploy.tasks.examples import Text
from trbert_deploy.tasks.outputs import Outputs
from trbert_deploy.tasks.pairs import TRUNCATIONS

#: Texts of a list that are on their way at a time, where nothing is said. Of others it is one, as
#: in transformers: a generator may be waiting for somebody.
LIST_BATCH = 32

#: Tokenizers that are held for calls that ask for their own length; one can take many megabytes.
MOST_TOKENIZERS = 8

#: What a call says -> whether texts are cut, and which one of a pair; what the bundle says if None.
_TRUNCATION: dict[bool | str, tuple[bool, str | None]] = {
    True: (True, None),
    **{name: (True, name) for name in TRUNCATIONS},
    False: (False, None),
    "do_not_truncate": (False, None),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What transformers takes with a call, or for all calls when a pipeline is made.

    Attributes:
        batch_size: texts that are on their way at a time.
        truncation: cut longer texts (True; the name of one of ``TRUNCATIONS`` says which text of a
            pair), or refuse them (False); cut them where None.
        max_length: most tokens of a text; the bundle's maximum where None.
        padding, num_workers: taken so that calls need no change; rows are padded as the backend
            needs it, and no process is started.

    Raises:
        ConfigError: a value that is not taken.
    """

    batch_size: int | None = None
    truncation: bool | str | None = None
    max_length: int | None = None
    padding: bool | str = True
    num_workers: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None:
            require_whole("batch_size", self.batch_size, 1, MOST_TEXTS)
        if self.truncation not in (None, *_TRUNCATION):
            known = ", ".join(map(str, _TRUNCATION))
            raise ConfigError(f"truncation is {self.truncation!r}: expected one of {known}")

    def updated(self, given: Mapping[str, Any]) -> Self:
        """With what a call says.

        Raises:
            ConfigError: an option that is unknown, or out of range.
        """
        known = [option.name for option in fields(self)]
        for name in given:
            if name not in known:
                raise ConfigError(
                    f"unknown option {name} of a call: expected one of {', '.join(known)}"
                )
        return replace(self, **given)


class DropIn(ABC):
    """A bundle that is called, and answers, as the transformers pipeline of a task.

    Args:
        model: the bundle, loaded.
        options: for all calls; a call may say others.

    Attributes:
        name: of the pipeline in transformers.
        tasks: names of the tasks whose models it takes.
        options_type: what its calls take.

    Raises:
        ConfigError: the model is for another task, or an option is unknown or out of range.
    """

    name: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]]
    options_type: ClassVar[type[Options]] = Options

    def __init__(self, model: Pipeline, **options: Any) -> None:
        if model.task.name not in self.tasks:
            raise ConfigError(
                f"{model.path} is for {model.task.name}: expected a bundle for {self.name}"
            )
        self.model = model
        self.options = self.options_type().updated(options)
        self._others: dict[tuple[Any, Any], Pipeline] = {}
        self._model_for(self.options)

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Answer one text, a list of them, or, one after the other, any number of them.

        Args:
            inputs: what the pipeline of transformers takes: one (see ``text_of``), a list, or a
                generator or data set.
            options: see ``options_type``.

        Returns:
            The answer; a list of them; or an iterator over them, which reads ``inputs`` as it goes.

        Raises:
            ConfigError: an option that is unknown, or out of range.
            DataError, LengthError, OutputError: as for a call of ``Pipeline``.
        """
        chosen = self.options.updated(options)
        if isinstance(inputs, str | Mapping):
            (answer,) = self._answers([inputs], chosen, 1)
            return answer
        if isinstance(inputs, list):
            return list(self._answers(inputs, chosen, LIST_BATCH))
        return self._answers(_each(inputs), chosen, 1)

    @abstractmethod
    def text_of(self, given: Any, name: str) -> Text:
        """The text, or the pair of texts, of one input.

        Args:
            name: what errors call it.

        Raises:
            DataError: it is none.
        """

    @abstractmethod
    def answer(self, outputs: Outputs, encoding: Encoding, text: Text, options: Any) -> Any:
        """What the pipeline of transformers answers to one input.

        Args:
            outputs: of the model.
            encoding: of the text.
            options: of the kind ``options_type``.

        Raises:
            OutputError: the outputs are no numbers, or of a wrong shape.
        """

    def _answers(self, inputs: Iterable[Any], options: Options, batch_size: int) -> Iterator[Any]:
        """Answers in order, so many inputs at a time unless the options say how many."""
        model, remaining = self._model_for(options), iter(inputs)
        numbers = count(1)
        take = partial(islice, remaining, options.batch_size or batch_size)
        for batch in iter(lambda: list(take()), []):
            names = [f"text {next(numbers)}" for _ in batch]
            texts = [self.text_of(*each) for each in zip(batch, names, strict=True)]
            texts = model.inputs_of(texts)
            encodings = model.tokenizer.encode(texts, names)
            results = model.run(model.rows(encodings, texts, names))
            for text, encoding, result in zip(texts, encodings, results, strict=True):
                yield self.answer(result.outputs, encoding, text, options)

    def _model_for(self, options: Options) -> Pipeline:
        """The model with the tokenizer that the options ask for."""
        key = (options.truncation, options.max_length)
        if key == (None, None):
            return self.model
        model = self._others.get(key)
        if model is None:
            cut, which = _TRUNCATION[True if options.truncation is None else options.truncation]
            model = copy(self.model)
            model.tokenizer = tokenizer_of(model.require_bundle(), options.max_length, cut, which)
            if len(self._others) == MOST_TOKENIZERS:
                self._others.clear()
            self._others[key] = model
        return model


def _each(inputs: Any) -> Iterable[Any]:
    """The inputs of a generator, or of a data set, which may have nothing but an index.

    Raises:
        DataError: it is nothing of the kind.
    """
    if not isinstance(inputs, tuple | bytes | Set):
        if isinstance(inputs, Iterable):
            return inputs
        if hasattr(inputs, "__getitem__"):
            return (inputs[place] for place in range(len(inputs)))
    raise DataError(
        f"the input is of type {type(inputs).__name__}: expected a string, a dictionary, a list of "
        "them, a generator or a data set"
    )
