"""What a training run is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from trbert_deploy.errors import ConfigError

STAGES = ("teacher", "guide", "policy", "joint")


def _option(default: Any, help: str, metavar: str | None = None) -> Any:
    """A field that the command line offers under its own name."""
    return field(default=default, metadata={"help": help, "metavar": metavar})


@dataclass(frozen=True)
class TrainOptions:
    """Options of a run; saved with it, and compared when it is resumed.

    Each field's help says what it is. ``None`` stands for a default that the model or the data
    decides: TR-BERT's cuts, the encoder's positions, a tenth of the training data.

    Raises:
        ConfigError: an option out of range.
    """

    model: str = field(metadata={"help": "Encoder to start from.", "metavar": "DIR_OR_HUB_NAME"})
    train: str = field(
        metadata={
            "help": "Labelled texts, JSONL, CSV or Parquet (.gz too): text, label, optionally "
            "text_pair.",
            "metavar": "FILE_OR_HUB_NAME",
        }
    )
    validation: str | None = _option(
        None, "Held-out data [default: a tenth of the training data].", "FILE_OR_HUB_NAME"
    )
    cuts: str | None = _option(
        None,
        "Where tokens are dropped: 1,3 is before layers 1 and 3, 0.5 inside layer 0 "
        "[default: before layer 1 and half-way].",
        "PLACES",
    )
    max_length: int | None = _option(
        None,
        "Most tokens of a text; beyond the encoder's positions these are tiled "
        "[default: the encoder's positions].",
    )
    truncate: bool = _option(True, "Cut longer texts, or refuse them.")
    stages: tuple[str, ...] = _option(STAGES, "Stages to run.", "NAMES")
    seed: int = _option(0, "Of data order, new weights, dropout and rollouts.")
    batch_tokens: int = _option(8192, "Tokens of one optimizer step.")
    teacher_epochs: float = _option(3.0, "Passes over the data in the teacher stage.")
    policy_epochs: float = _option(3.0, "The same in the policy stage.")
    joint_epochs: float = _option(1.0, "The same in the joint stage.")
    teacher_learning_rate: float = _option(5e-5, "Peak learning rate of the teacher stage.")
    policy_learning_rate: float = _option(1e-3, "The same in the policy stage.")
    joint_learning_rate: float = _option(2e-5, "The same in the joint stage, for the encoder.")
    joint_policy_learning_rate: float = _option(1e-4, "The same there, for the policies.")
    length_penalty: float = _option(
        1.0, "Lambda: price of keeping all tokens, in units of loss, in the policy stage."
    )
    joint_length_penalty: float = _option(1.0, "The same in the joint stage.")
    target_speedup: float | None = _option(
        None,
        "After the policy and joint stages set the threshold that saves this factor of FLOPs on "
        "the validation data [default: the threshold stays 0.5].",
    )
    rollouts: int = _option(8, "K: sampled paths per text in the policy stage.")
    joint_rollouts: int = _option(4, "The same in the joint stage.")
    imitation_share: float = _option(
        0.5, "Share of the policy stage in which one path imitates the saliency guide."
    )
    warmup_share: float = _option(0.1, "Share of a stage over which its learning rate rises.")
    save_seconds: float = _option(60.0, "Seconds between two saves of a stage's progress.")

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
        if self.target_speedup is not None and not self.target_speedup >= 1:
            raise ConfigError(f"target_speedup is {self.target_speedup}: expected 1 or more")
        if self.max_length is not None and self.max_length < 2:
            raise ConfigError(f"max_length is {self.max_length}: expected 2 or more")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def changed(self, saved: Mapping[str, Any]) -> list[str]:
        """Names of the options that differ from a saved run's, but for which stages to run."""
        own = self.to_json()
        free = {"stages", "save_seconds"}
        return [
            entry.name
            for entry in fields(self)
            if entry.name not in free and own[entry.name] != saved.get(entry.name)
        ]
