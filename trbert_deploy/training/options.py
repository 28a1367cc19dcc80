"""What a training run is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from trbert_deploy.bounds import MOST_TOKENS, require_whole
from trbert_deploy.errors import ConfigError
from trbert_deploy.fields import known_fields
from trbert_deploy.tasks.columns import ColumnNames
from trbert_deploy.training.recipe import AVERAGED, Recipe

#: Times fewer FLOPs, if nobody says otherwise.
TARGET_SPEEDUP = 3.0
#: Where the computation would end that a wanted quality stops on its way.
LARGEST_SPEEDUP = 10.0

#: What names the columns of data -> its help.
COLUMN_HELP = {
    "text_column": "Column of the texts [default: by its name].",
    "pair_column": "Column of second texts [default: by its name].",
    "label_column": "Column of the labels [default: by its name].",
}
#: Of these a run may have others when it is resumed.
_FREE = ("stages", "save_seconds")


def _option(default: Any, help: str, metavar: str | None = None) -> Any:
    """A field that the command line offers under its own name."""
    return field(default=default, metadata={"help": help, "metavar": metavar})


@dataclass(frozen=True)
class TrainOptions:
    """Options of a run; saved with it, and compared when it is resumed.

    Each field's help says what it is. ``None`` stands for a default that the model, the data or
    the recipe decides: a tenth of the training data, the encoder's positions, 3 times fewer FLOPs
    unless the recipe's penalty is fixed. ``recipe`` says how the stages are trained.

    Raises:
        ConfigError: an option out of range.
    """

    model: str = field(metadata={"help": "Encoder: directory or hub name.", "metavar": "MODEL"})
    train: str = field(
        metadata={
            "help": "Texts to learn: file, -, or hub name.",
            "metavar": "TEXTS",
        }
    )
    validation: str | None = _option(None, "Held-out texts [default: a tenth of --train].", "TEXTS")
    text_column: str | None = _option(None, COLUMN_HELP["text_column"], "NAME")
    pair_column: str | None = _option(None, COLUMN_HELP["pair_column"], "NAME")
    label_column: str | None = _option(None, COLUMN_HELP["label_column"], "NAME")
    task: str | None = _option(None, "Of a new head [default: text-classification].", "NAME")
    target_speedup: float | None = _option(
        None, "Times fewer FLOPs to aim at [default: 3].", "FACTOR"
    )
    max_drop: float | None = _option(None, "Instead: most points of accuracy to lose.", "POINTS")
    max_length: int | None = _option(None, "Most tokens of a text [default: as the encoder].", "N")
    warm_start: str | None = _option(None, "Checkpoint with cuts to go on from.", "DIR")
    lexicon: str | None = _option(None, "Phrases with tags, for tagging.", "FILE")
    recipe: Recipe = Recipe()

    def __post_init__(self) -> None:
        if self.averaged_runs_of("joint") > 1 and self.max_drop is not None:
            raise ConfigError(
                "averaged runs must aim at one computation, which max_drop leaves to each joint "
                "stage: give a target_speedup, or leave averaged_from at hard"
            )
        if self.target_speedup is not None and not self.target_speedup >= 1:
            raise ConfigError(f"target_speedup is {self.target_speedup}: expected 1 or more")
        if self.max_drop is not None and not self.max_drop >= 0:
            raise ConfigError(f"max_drop is {self.max_drop}: expected 0 or more points")
        if self.max_length is not None:
            require_whole("max_length", self.max_length, 2, MOST_TOKENS)

    @property
    def wanted_speedup(self) -> float | None:
        """FLOPs speed-up that is asked for; None where the recipe's penalty is fixed."""
        if self.target_speedup is None and not self.recipe.fixed_penalty:
            return TARGET_SPEEDUP
        return self.target_speedup

    @property
    def columns(self) -> ColumnNames:
        """The columns that were named."""
        return ColumnNames(self.text_column, self.pair_column, self.label_column)

    @property
    def final_speedup(self) -> float | None:
        """FLOPs speed-up that the computation falls to; None where the penalty is fixed."""
        return self.wanted_speedup if self.max_drop is None else LARGEST_SPEEDUP

    def averaged_runs_of(self, stage: str) -> int:
        """How often a stage is trained."""
        averaged = AVERAGED[AVERAGED.index(self.recipe.averaged_from) :]
        return self.recipe.averaged_runs if stage in averaged else 1

    def to_json(self) -> dict[str, Any]:
        """The options as they are used: with the speed-up that is wanted."""
        return {**asdict(self), "target_speedup": self.wanted_speedup}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrainOptions:
        """What ``to_json`` gave; a run older than an option had its default.

        Raises:
            ConfigError: other options, or one of another kind or out of range.
        """
        known = known_fields(cls, data, "the options of a run", defaults=True)
        return cls(**{**known, "recipe": Recipe.from_json(known.get("recipe", {}))})

    def changed(self, other: TrainOptions) -> list[str]:
        """Names of what differs from another run's, but for which stages to run."""
        own, its = self.to_json(), other.to_json()
        names = [entry.name for entry in fields(self) if entry.name != "recipe"]
        changed = [name for name in names if own[name] != its[name]]
        return changed + [key for key in self.recipe.changed(other.recipe) if key not in _FREE]
