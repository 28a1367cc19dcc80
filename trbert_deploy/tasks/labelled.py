"""What all tasks have whose logits are those of named labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

from trbert_deploy.config import EncoderSpec
from trbert_deploy.errors import DataError, few
from trbert_deploy.tasks.labels import place_of, require_classes
from trbert_deploy.tasks.outputs import Outputs
from trbert_deploy.tasks.task import Task


class LabelledTask(Task):
    """A task whose outputs end in one value for each label.

    Attributes:
        labels: in the order of the logits.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)

    @classmethod
    def of(cls, spec: EncoderSpec) -> Self:
        return cls(spec.labels)

    def require_names(self, labels: Sequence[str], where: str) -> None:
        unknown = self.unknown(labels)
        require_classes(unknown)
        if unknown:
            raise DataError(
                f"the data has labels that {where} does not know: {few(unknown)} (it knows "
                f"{few(self.labels)})"
            )

    def unknown(self, labels: Iterable[str]) -> list[str]:
        """Those of ``labels`` that the model does not know, sorted."""
        return sorted(label for label in set(labels) if place_of(label, self.labels) is None)

    def require_like(self, other: Task, name: str) -> None:
        super().require_like(other, name)
        labels = getattr(other, "labels", ())
        if set(labels) != set(self.labels):
            raise DataError(
                f"{name} knows the labels {few(self.labels)}: expected those of the model, "
                f"{few(labels)}"
            )

    def translated(self, outputs: Outputs, other: Task) -> Outputs:
        """Outputs in the order of another model's labels."""
        labels: tuple[str, ...] = getattr(other, "labels", ())
        order = [self.labels.index(label) for label in labels]
        return {name: values[..., order] for name, values in outputs.items()}
