"""Which rows leave the chain at a cut, by what the exits say of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trbert_deploy.selection.exits import ExitRule
from trbert_deploy.tasks.outputs import Outputs
from trbert_deploy.tasks.task import Task


@dataclass
class PassedExits:
    """What the exits have said of a row so far.

    Attributes:
        answer: of the last one; None before the first.
        agreeing: how many of them, one behind the other, gave this answer.
    """

    answer: Outputs | None = None
    agreeing: int = 0

    def leaves(self, answer: Outputs, rule: ExitRule, task: Task) -> bool:
        """Whether the row leaves with what the next exit says, which is noted for patience.

        What is no number is never sure of itself, and agrees with nothing.
        """
        if not rule.is_active:
            return False
        if rule.confidence is not None and task.confidence(answer) > rule.confidence:
            return True
        if rule.patience is None:  # nobody asks whether exits agree
            return False
        same = self.answer is not None and task.same_answer(self.answer, answer)
        self.answer, self.agreeing = answer, self.agreeing + 1 if same else 1
        return self.agreeing >= rule.patience


def exit_of(answers: Sequence[Outputs], rule: ExitRule | None, task: Task) -> int | None:
    """The cut at which a row leaves, given what every exit would say of it; None for the end."""
    if rule is None:
        return None
    passed = PassedExits()
    for cut, answer in enumerate(answers):
        if passed.leaves(answer, rule, task):
            return cut
    return None
