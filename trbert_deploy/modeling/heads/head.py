"""The head: what last states are turned into, and what training asks of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from trbert_deploy.config import EncoderSpec
from trbert_deploy.modeling.blocks.embeddings import Embeddings
from trbert_deploy.modeling.layouts.layout import Layout

#: Name -> values, float32: [B, ...] of rows, [B, S, ...] of their tokens (zero behind a row's).
Outputs = Mapping[str, Tensor]


class Head(nn.Module, ABC):
    """Computes a task's outputs, and the losses of training.

    Attributes:
        task: the task that it answers, a key of ``trbert_deploy.tasks.registry``.
        problem: the kind of its answers, as the task's.
    """

    task: ClassVar[str]
    problem: ClassVar[str] = ""

    @classmethod
    @abstractmethod
    def build(cls, spec: EncoderSpec) -> Self:
        """The head of a model of this shape."""

    @classmethod
    def build_exit(cls, spec: EncoderSpec) -> Self:
        """A head that answers as this one does, from states of a cut."""
        return cls.build(spec)

    def share(self, embeddings: Embeddings) -> None:
        """Take the weights that it has in common with an encoder's embeddings, if any."""

    @property
    def quick_parameters(self) -> list[nn.Parameter]:
        """Few and new ones, which learn at a rate of their own."""
        return []

    @abstractmethod
    def forward(self, hidden: Tensor, layout: Layout) -> dict[str, Tensor]:
        """Last states [..., H] of a layout -> outputs by name: [B, ...], or [..., X] of tokens."""

    @abstractmethod
    def loss(
        self, outputs: Outputs, target: Tensor | None, teacher: Outputs | None = None
    ) -> Tensor:
        """What training brings down, for each row: [B] float32.

        Args:
            target: as the training rows have it; a row may have none.
            teacher: a teacher's outputs on the same rows, to be matched.
        """

    @abstractmethod
    def path_loss(self, outputs: Outputs, target: Tensor | None, teacher: Outputs) -> Tensor:
        """How far answers along sampled paths are from what is wanted: [K, B] float32.

        Args:
            outputs: of K times B rows, path by path.
            target: of the B rows, taken as half of what is wanted where a row has one; None for
                the teacher alone.
            teacher: its outputs on the B rows.
        """

    @abstractmethod
    def correct(self, outputs: Outputs, target: Tensor) -> Tensor:
        """How right each answer is, from 0 to 1; 0 for a row without a target: [B] float32."""

    @abstractmethod
    def has_target(self, target: Tensor) -> Tensor:
        """Which rows have one: [B] bool."""

    @abstractmethod
    def answers(self, outputs: Outputs, like: Tensor) -> Tensor:
        """What outputs answer, as targets: [B, ...].

        Args:
            like: targets of the same rows, which say what of them is asked for.
        """

    def targets_or_answers(self, target: Tensor, outputs: Outputs) -> Tensor:
        """Targets, with what ``outputs`` answer for rows that have none: [B, ...]."""
        known = self.has_target(target).view(-1, *[1] * (target.ndim - 1))
        return torch.where(known, target, self.answers(outputs, target))
