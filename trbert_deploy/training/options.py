"""What a training run is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from trbert_deploy.errors import ConfigError

STAGES = ("teacher", "guide", "policy", "joint")


@dataclass(frozen=True)
class TrainOptions:
    """Options of a run; saved with it, and compared when it is resumed.

    Attributes:
        model: checkpoint directory or hub name to start from.
        train: training data, a file or a hub data set.
        validation: held-out data; a share of the training data when None.
        cuts: places of the cuts as on the command line; TR-BERT's when None.
        max_length: most tokens of a row; the encoder's positions when None. Beyond them the
            position table is tiled.
        stages: which stages to run, in the order of ``STAGES``.
        seed: of data order, new weights, dropout and rollouts.
        batch_tokens: tokens of one optimizer step.
        teacher_epochs, policy_epochs, joint_epochs: passes over the training data.
        teacher_learning_rate, policy_learning_rate, joint_learning_rate: peak rates.
        joint_policy_learning_rate: peak rate of the policies in the joint stage.
        length_penalty, joint_length_penalty: lambda, the price of keeping every token, in units
            of loss (TR-BERT, section 3.3).
        rollouts, joint_rollouts: K, sampled paths per text.
        imitation_share: share of the policy stage's steps in which one rollout imitates the
            saliency guide instead of being sampled (TR-BERT: guide rate).
        warmup_share: share of a stage's steps over which its learning rate rises.
        save_seconds: seconds between two saves of a stage's progress.

    Raises:
        ConfigError: an option out of range.
    """

    model: str
    train: str
    validation: str | None = None
    cuts: str | None = None
    max_length: int | None = None
    stages: tuple[str, ...] = STAGES
    seed: int = 0
    batch_tokens: int = 8192
    teacher_epochs: float = 3.0
    policy_epochs: float = 3.0
    joint_epochs: float = 1.0
    teacher_learning_rate: float = 5e-5
    policy_learning_rate: float = 1e-3
    joint_learning_rate: float = 2e-5
    joint_policy_learning_rate: float = 1e-4
    length_penalty: float = 1.0
    joint_length_penalty: float = 1.0
    rollouts: int = 8
    joint_rollouts: int = 4
    imitation_share: float = 0.5
    warmup_share: float = 0.1
    save_seconds: float = 60.0

    def __post_init__(self) -> None:
        unknown = [stage for stage in self.stages if stage not in STAGES]
        if unknown or not self.stages:
            raise ConfigError(
                f"unknown stages {', '.join(unknown) or '(none)'}: "
                f"expected some of {','.join(STAGES)}"
            )
        if list(self.stages) != sorted(set(self.stages), key=STAGES.index):
            raise ConfigError(
                f"stages {','.join(self.stages)}: expected each once, "
                f"in the order {','.join(STAGES)}"
            )
        for name in ("rollouts", "joint_rollouts"):
            if getattr(self, name) < 2:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}: expected 2 or more, since a rollout is "
                    "judged by the others' mean"
                )
        for name in ("imitation_share", "warmup_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected a share from 0 to 1")
        for name, value in asdict(self).items():
            if name.endswith(("epochs", "learning_rate", "batch_tokens")) and not value > 0:
                raise ConfigError(f"{name} is {value}: expected more than 0")
            if name.endswith("length_penalty") and not value >= 0:
                raise ConfigError(f"{name} is {value}: expected 0 or more")
        if self.max_length is not None and self.max_length < 2:
            raise ConfigError(f"max_length is {self.max_length}: expected 2 or more")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def changed(self, saved: Mapping[str, Any]) -> list[str]:
        """Names of the options that differ from a saved run's, but for which stages to run."""
        own = self.to_json()
        free = {"stages", "save_seconds"}
        return [
            field.name
            for field in fields(self)
            if field.name not in free and own[field.name] != saved.get(field.name)
        ]
