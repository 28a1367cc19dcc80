"""What a compression is asked to do, and when it counts as failed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from trbert_deploy.errors import ConfigError
from trbert_deploy.evaluation.quality import QualityReport
from trbert_deploy.tasks.columns import ColumnNames

#: Texts that are used of more; what more of them add was not worth their time.
MOST_TEXTS = 50_000
_ROUNDING = 1e-9


@dataclass(frozen=True)
class CompressOptions:
    """What to make of a fine-tuned model.

    Attributes:
        model: checkpoint directory or hub name.
        texts: file, pipe or standard input (``-``).
        target_speedup: FLOPs of the dense model over the chain's.
        min_agreement: least agreement with the model's own answers on held-out texts, in percent.
        max_drop: most points that the task's measure may fall by on them; all must have labels.
        max_length: most tokens of a text; the model's positions where None.
        recipe: of training: a name or a file; where None ``exits`` for a classifier of one
            label, ``gates`` for all others.
        names: columns that the user named.
        task: what the model is asked for; its own where None.

    Raises:
        ConfigError: an option out of range, or two gates.
    """

    model: str
    texts: str
    target_speedup: float = 3.0
    min_agreement: float | None = None
    max_drop: float | None = None
    max_length: int | None = None
    recipe: str | None = None
    names: ColumnNames = ColumnNames()
    task: str | None = None

    def __post_init__(self) -> None:
        if not self.target_speedup > 1:
            raise ConfigError(f"target_speedup is {self.target_speedup:g}: expected more than 1")
        if self.min_agreement is not None and not 1 < self.min_agreement <= 100:
            raise ConfigError(
                f"min_agreement is {self.min_agreement:g}: expected a percentage, such as 98"
            )
        if self.max_drop is not None and not self.max_drop >= 0:
            raise ConfigError(f"max_drop is {self.max_drop:g}: expected 0 or more points")
        if self.min_agreement is not None and self.max_drop is not None:
            raise ConfigError(
                "min_agreement asks for the model's own answers and max_drop for labels: give one"
            )

    @property
    def judges_by_labels(self) -> bool:
        """Whether labels count where there are any; the model's own answers do otherwise."""
        return self.min_agreement is None

    def fails(self, score: float, teacher_score: float) -> bool:
        """Whether a score, from 0 to 1, misses what was asked for, roundings aside."""
        if self.min_agreement is not None:
            return 100.0 * score < self.min_agreement - _ROUNDING
        drop = 100.0 * (teacher_score - score)
        return self.max_drop is not None and drop > self.max_drop + _ROUNDING

    def missed(self, quality: QualityReport) -> str | None:
        """What was asked for and not reached, in words."""
        if not self.fails(quality.reduced.score, quality.dense.score):
            return None
        if self.min_agreement is not None:
            return (
                f"{quality.reduced.score:.2%} of the answers agree with the model's: wanted were "
                f"{self.min_agreement:g} %"
            )
        return (
            f"{quality.measure} falls by {-quality.score_change:.2f} points: allowed were "
            f"{self.max_drop:g}"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def changed(self, saved: dict[str, Any]) -> list[str]:
        """Names of the options that differ from a saved run's."""
        own = self.to_json()
        return [entry.name for entry in fields(self) if own[entry.name] != saved.get(entry.name)]
