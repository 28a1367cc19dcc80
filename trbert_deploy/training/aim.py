"""What a run aims at: a speed-up, or a loss of quality; and the operating point it ends at."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from trbert_deploy.flops import REACHED
from trbert_deploy.modeling.model import ReducedModel
from trbert_deploy.selection.exits import ExitRule
from trbert_deploy.training.constraint import FlopsConstraint
from trbert_deploy.training.options import TrainOptions
from trbert_deploy.training.recipe import EXITS
from trbert_deploy.training.validation import (
    PassedRows,
    ValidatedPoint,
    Validator,
    set_threshold,
)

#: FLOPs speed-ups of the table at the end of training.
TABLE_SPEEDUPS = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)
#: The speed-up at which policies are compared while only a loss of quality is given.
REFERENCE_SPEEDUP = 2.0
#: Gates start at the threshold that saves this little.
OPENING_SPEEDUP = 1.1
#: Held-out rows from which a confidence of exits is more than chance: one of 500 is 0.2 points.
ENOUGH_ROWS = 500


@dataclass(frozen=True)
class Aim:
    """What validation asks of a stage.

    Attributes:
        options: of the run.
        validator: held-out rows.
        teacher_score: on them, 1 where they are judged by its own answers.
        note: told what a person should know.
    """

    options: TrainOptions
    validator: Validator
    teacher_score: float
    note: Callable[[str], None]

    def prepare(self, stage: str, model: ReducedModel) -> float:
        """Set the threshold that a stage starts with.

        Returns:
            The FLOPs speed-up from which the wanted one is approached: that of a warm start, or
            1, the dense model's.
        """
        if stage != "joint":
            return 1.0
        opening = 1.0
        if self.options.warm_start is not None:
            own = self.validator.chain(model).flops_speedup
            opening = min(own, self.options.final_speedup or own)
        if self.options.recipe.estimator == "gates":
            self._open_gates(model, max(opening, OPENING_SPEEDUP))
        return opening

    def _open_gates(self, model: ReducedModel, speedup: float) -> None:
        self.validator.calibrate(model, speedup)
        # Gates are half open at a keep probability of 0.5: the threshold moves there.
        threshold = torch.tensor(model.reduction.cuts[0].rule.value).logit()
        with torch.no_grad():
            for index in range(len(model.policies)):
                model.policy(index).score.bias.sub_(threshold)
        set_threshold(model, 0.5)

    def judge(
        self, stage: str, model: ReducedModel, constraint: FlopsConstraint | None
    ) -> Callable[[float], float]:
        """How a stage is validated: share of it that is done -> score, the highest is best."""
        if stage == "teacher":
            return lambda done: self.validator.rank(self.validator.dense(model))
        if stage == EXITS:
            speedup = self.options.wanted_speedup
            if self.options.max_drop is not None:
                speedup = self.validator.chain(model).flops_speedup
            return lambda done: self._with_exits(model, speedup)
        if self.options.max_drop is None:
            return lambda done: self._at_speedup(model, self.options.wanted_speedup, done)
        if stage == "joint" and constraint is not None:
            return lambda done: self._while_quality_lasts(model, constraint, done)
        # The joint stage left the threshold at what it could save.
        speedup = REFERENCE_SPEEDUP
        if stage == "hard":
            speedup = self.validator.chain(model).flops_speedup
        return lambda done: self._at_speedup(model, speedup, done)

    def _at_speedup(self, model: ReducedModel, speedup: float | None, done: float) -> float:
        """Rank at a speed-up; where none is wanted the last checkpoint counts as best."""
        if speedup is None:
            return done
        self.validator.calibrate(model, speedup)
        return self.validator.rank(self.validator.chain(model))

    def _with_exits(self, model: ReducedModel, speedup: float | None) -> float:
        """Mean rank of exits and end where the policies save what they are to save."""
        if speedup is not None:
            self.validator.calibrate(model, speedup)
        return self.validator.exits(model)

    def _while_quality_lasts(
        self, model: ReducedModel, constraint: FlopsConstraint, done: float
    ) -> float:
        """Let the computation fall until it costs too much quality; the last one is best."""
        goal = constraint.goal(done)
        self.validator.calibrate(model, 1.0 / goal)
        if self.drop_of(self.validator.chain(model).score) > self.max_drop:
            constraint.stop_falling(goal)
        return done

    @property
    def max_drop(self) -> float:
        """The wanted largest loss, in points."""
        return math.inf if self.options.max_drop is None else self.options.max_drop

    def drop_of(self, score: float) -> float:
        """Points under the teacher."""
        return 100.0 * (self.teacher_score - score)

    def finish(self, model: ReducedModel) -> tuple[ValidatedPoint, list[ValidatedPoint]]:
        """Set the operating point that was asked for.

        Returns:
            What the chain comes to there; and that among others, by what they save.
        """
        passed = self.validator.passed(model)
        exits_drop = self._set_confidence(model, passed) if model.exits else 0.0
        here = self.validator.points(model, passed)
        own = here[-1]
        others = self.validator.operating_points(model, TABLE_SPEEDUPS)
        others = [point for point in others if point.threshold != own.threshold]
        points = sorted([*here, *others], key=lambda point: point.flops_speedup)
        wanted = self.options.wanted_speedup
        if self.options.max_drop is not None:
            own = self._choose(points)
            set_threshold(model, own.threshold)
            if model.exits:
                model.set_reduction(model.reduction.with_exits(ExitRule(own.exit_confidence)))
        elif wanted is not None and here[0].flops_speedup < wanted * REACHED:
            self.note(
                f"a speed-up of {wanted:g} cannot be reached with cuts at "
                f"{model.reduction.places}: kept {here[0].flops_speedup:.2f}, the most; "
                "earlier cuts (cuts = '0,3' in the recipe) allow more"
            )
        if model.exits:
            self._note_exits(model, exits_drop)
        return own, points

    def _set_confidence(self, model: ReducedModel, passed: PassedRows) -> float:
        """Let rows leave where that costs no more than it may: so many points, returned."""
        most = self.options.recipe.exits.max_drop
        if self.options.max_drop is not None:
            to_the_end = self.validator.left_by(model, passed, None)
            most = max(0.0, self.max_drop - self.drop_of(to_the_end.score))
        self.validator.calibrate_exits(model, passed, most)
        return most

    def _note_exits(self, model: ReducedModel, most: float) -> None:
        """Say where no row leaves, and where few rows alone say when."""
        rule, rows = model.reduction.exits, len(self.validator.rows)
        if not model.reduction.rows_leave:
            self.note(
                f"no exit is as good as the end within {most:g} points: rows leave only where "
                "--exit-confidence or --exit-patience says so"
            )
        elif rows < ENOUGH_ROWS:
            assert rule is not None  # rows leave by it
            self.note(
                f"rows leave at a confidence of {rule.confidence:.2f}, which {rows} held-out texts "
                f"alone say: give {ENOUGH_ROWS} or more, or an --exit-confidence of your own"
            )

    def _choose(self, points: Sequence[ValidatedPoint]) -> ValidatedPoint:
        """The fastest point within the wanted loss, or the best one there is."""
        within = [point for point in points if self.drop_of(point.score) <= self.max_drop]
        if within:
            return max(within, key=lambda point: point.flops_speedup)
        best = max(points, key=lambda point: point.score)
        self.note(
            f"no operating point loses {self.max_drop:g} points or less: kept the best, "
            f"{self.drop_of(best.score):.2f} points at {best.flops_speedup:.2f} times fewer "
            "FLOPs; train longer, or allow a larger --max-drop"
        )
        return best


def rows_needed(points: float, differing: float = 0.05) -> int:
    """Rows at which the 95 % interval of an accuracy difference is at most +- ``points``.

    Args:
        points: half width, above 0.
        differing: share of rows on which the two models differ, so that each row's difference
            has this variance at most.
    """
    return math.ceil(differing * (1.96 / (points / 100.0)) ** 2)
