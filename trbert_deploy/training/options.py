"""What a training run is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from trbert_deploy.errors import ConfigError
from trbert_deploy.tasks.columns import ColumnNames

STAGES = ("teacher", "guide", "policy", "joint", "hard")
#: Stages that match the teacher's answers on texts, whether these have labels or not.
DISTILLING = ("joint", "hard")
ESTIMATORS = ("gates", "reinforce")
#: Runs whose weights are averaged, if nobody says otherwise (docs/results.md).
AVERAGED_RUNS = 3
#: Where the computation would end that a wanted quality stops on its way.
LARGEST_SPEEDUP = 10.0

#: What names the columns of data -> its help.
COLUMN_HELP = {
    "text_column": "Column of the texts [default: text, sentence, content, review and the like].",
    "pair_column": "Column of second texts [default: text_pair, or that beside the first].",
    "label_column": "Column of the labels [default: label, labels, class and the like].",
}

#: Recipe -> the options whose default it changes. The first is the default itself.
RECIPES: dict[str, dict[str, Any]] = {
    "gates": {},
    # The four published stages with their fixed penalty (TR-BERT, section 3.3 and appendix).
    "tr-bert": {
        "estimator": "reinforce",
        "stages": STAGES[:-1],
        "target_speedup": None,
        "teacher_learning_rate": 3e-5,
        "policy_learning_rate": 3e-5,
        "joint_learning_rate": 3e-5,
        "joint_policy_learning_rate": 3e-5,
        "teacher_epochs": 3.0,
        "policy_epochs": 3.0,
        "joint_epochs": 3.0,
    },
}


def _option(default: Any, help: str, metavar: str | None = None) -> Any:
    """A field that the command line offers under its own name."""
    return field(default=default, metadata={"help": help, "metavar": metavar})


@dataclass(frozen=True)
class TrainOptions:
    """Options of a run; saved with it, and compared when it is resumed.

    Each field's help says what it is. ``None`` stands for a default that the model or the data
    decides: the estimator's cuts, the encoder's positions, a tenth of the training data, the runs
    to average.

    Raises:
        ConfigError: an option out of range.
    """

    model: str = field(metadata={"help": "Encoder to start from.", "metavar": "DIR_OR_HUB_NAME"})
    train: str = field(
        metadata={
            "help": "Labelled texts: JSONL, JSON, CSV, TSV or Parquet, also compressed; - for "
            "stdin.",
            "metavar": "FILE_OR_HUB_NAME",
        }
    )
    validation: str | None = _option(
        None, "Held-out data [default: a tenth of the training data].", "FILE_OR_HUB_NAME"
    )
    text_column: str | None = _option(None, COLUMN_HELP["text_column"], "NAME")
    pair_column: str | None = _option(None, COLUMN_HELP["pair_column"], "NAME")
    label_column: str | None = _option(None, COLUMN_HELP["label_column"], "NAME")
    target_speedup: float | None = _option(
        3.0,
        "FLOPs of the dense model over the chain's: what the length penalty is adjusted to while "
        "training, and the threshold afterwards.",
        "FACTOR",
    )
    max_drop: float | None = _option(
        None,
        "Instead of --target-speedup: save as much as costs at most so many points of validation "
        "accuracy under the teacher.",
        "POINTS",
    )
    cuts: str | None = _option(
        None,
        "Where tokens are dropped: 1,3 is before layers 1 and 3, 0.5 inside layer 0 "
        "[default: inside layer 0 and half-way; for REINFORCE before layer 1 and half-way].",
        "PLACES",
    )
    warm_start: str | None = _option(
        None,
        "Checkpoint that drops tokens already, to go on from in place of the policy stage; the "
        "teacher stays --model.",
        "DIR",
    )
    max_length: int | None = _option(
        None,
        "Most tokens of a text; beyond the encoder's positions these are tiled "
        "[default: the encoder's positions].",
    )
    truncate: bool = _option(True, "Cut longer texts, or refuse them.")
    stages: tuple[str, ...] = _option(STAGES, "Stages to run.", "NAMES")
    estimator: str = _option(
        "gates",
        "How policies learn: from the gradient of straight-through gates, or by REINFORCE.",
        "|".join(ESTIMATORS),
    )
    seed: int = _option(0, "Of data order, new weights, dropout and rollouts.")
    batch_tokens: int = _option(8192, "Tokens of one optimizer step.")
    teacher_epochs: float = _option(3.0, "Passes over the data in the teacher stage.")
    policy_epochs: float = _option(1.0, "The same in the policy stage.")
    joint_epochs: float = _option(1.0, "The same in the joint stage.")
    hard_epochs: float = _option(2.0, "The same in the hard stage.")
    recombined: float = _option(
        0.0,
        "Texts joined from parts of two training texts, for each training text; the teacher "
        "labels them, and the joint and hard stage learn from them too.",
        "FACTOR",
    )
    averaged_runs: int | None = _option(
        None,
        "Times that the stages after the teacher's are trained, each with its own seed; the "
        "weights are averaged [default: 3; for --max-drop and for REINFORCE 1].",
        "NUMBER",
    )
    teacher_learning_rate: float = _option(5e-5, "Peak learning rate of the teacher stage.")
    policy_learning_rate: float = _option(1e-3, "The same in the policy stage.")
    joint_learning_rate: float = _option(3e-5, "The same in the joint stage, for the encoder.")
    joint_policy_learning_rate: float = _option(1e-3, "The same there, for the policies.")
    hard_learning_rate: float = _option(5e-5, "The same in the hard stage, for the encoder.")
    penalty_ramp: float = _option(
        0.6, "Share of the joint stage over which the computation falls to the wanted one."
    )
    length_penalty: float = _option(
        1.0,
        "Lambda: price of keeping all tokens, in units of loss, where REINFORCE learns without "
        "a wanted speed-up.",
    )
    joint_length_penalty: float = _option(1.0, "The same in the joint stage.")
    rollouts: int = _option(8, "K: sampled paths per text in REINFORCE's policy stage.")
    joint_rollouts: int = _option(4, "The same in its joint stage.")
    imitation_share: float = _option(
        0.5, "Share of REINFORCE's policy stage in which one path imitates the saliency guide."
    )
    mixed_share: float = _option(
        0.25, "Share of the hard stage's rows that keep more tokens than wanted, up to all."
    )
    validations: int = _option(
        4, "Times that a stage is validated (policy: once); the best checkpoint of each is kept."
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
        if self.estimator not in ESTIMATORS:
            raise ConfigError(
                f"unknown estimator {self.estimator}: expected one of {', '.join(ESTIMATORS)}"
            )
        if self.estimator == "gates" and self.target_speedup is None and self.max_drop is None:
            raise ConfigError(
                "gates learn under a wanted computation: give a target_speedup or a max_drop, "
                "or take the estimator reinforce"
            )
        if not self.recombined >= 0:
            raise ConfigError(f"recombined is {self.recombined}: expected 0 or more")
        if self.recombined and self.estimator == "reinforce":
            raise ConfigError(
                "recombined texts have no labels, which the estimator reinforce needs: leave "
                "recombined at 0, or take the estimator gates"
            )
        if self.averaged_runs is not None and self.averaged_runs < 1:
            raise ConfigError(f"averaged_runs is {self.averaged_runs}: expected 1 or more")
        if (self.averaged_runs or 1) > 1 and self.max_drop is not None:
            raise ConfigError(
                "averaged runs must aim at one computation, which max_drop leaves to each: give a "
                "target_speedup, or leave averaged_runs at 1"
            )
        for name in ("rollouts", "joint_rollouts"):
            if getattr(self, name) < 2:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}: expected 2 or more, since a rollout is "
                    "judged by the others' mean"
                )
        for name in ("imitation_share", "warmup_share", "penalty_ramp", "mixed_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected a share from 0 to 1")
        for name, value in asdict(self).items():
            if name.endswith(("epochs", "learning_rate", "batch_tokens")) and not value > 0:
                raise ConfigError(f"{name} is {value}: expected more than 0")
            if name.endswith("length_penalty") and not value >= 0:
                raise ConfigError(f"{name} is {value}: expected 0 or more")
        if self.target_speedup is not None and not self.target_speedup >= 1:
            raise ConfigError(f"target_speedup is {self.target_speedup}: expected 1 or more")
        if self.max_drop is not None and not self.max_drop >= 0:
            raise ConfigError(f"max_drop is {self.max_drop}: expected 0 or more points")
        if self.validations < 1:
            raise ConfigError(f"validations is {self.validations}: expected 1 or more")
        if self.max_length is not None and self.max_length < 2:
            raise ConfigError(f"max_length is {self.max_length}: expected 2 or more")

    @classmethod
    def by_recipe(cls, recipe: str, **given: Any) -> TrainOptions:
        """Options with the defaults of a recipe; those ``given`` come first.

        Raises:
            ConfigError: an unknown recipe, or an option out of range.
        """
        if recipe not in RECIPES:
            raise ConfigError(f"unknown recipe {recipe}: expected one of {', '.join(RECIPES)}")
        return cls(**{**RECIPES[recipe], **given})

    @property
    def columns(self) -> ColumnNames:
        """The columns that were named."""
        return ColumnNames(self.text_column, self.pair_column, self.label_column)

    @property
    def final_speedup(self) -> float | None:
        """FLOPs speed-up that the computation falls to; None where the penalty is fixed."""
        return self.target_speedup if self.max_drop is None else LARGEST_SPEEDUP

    def validations_of(self, stage: str) -> int:
        """How often a stage is validated; the short policy stage is at its end alone."""
        return 1 if stage == "policy" else self.validations

    def averaged_runs_of(self, stage: str) -> int:
        """How often a stage is trained."""
        if stage in ("teacher", "guide"):
            return 1
        if self.averaged_runs is not None:
            return self.averaged_runs
        return AVERAGED_RUNS if self.estimator == "gates" and self.max_drop is None else 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def changed(self, saved: Mapping[str, Any]) -> list[str]:
        """Names of the options that differ from a saved run's, but for which stages to run."""
        own = self.to_json()
        free = {"stages", "save_seconds"}
        return [
            entry.name
            for entry in fields(self)  # a run older than an option had its default
            if entry.name not in free and own[entry.name] != saved.get(entry.name, entry.default)
        ]
