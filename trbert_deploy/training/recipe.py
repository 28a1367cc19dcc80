"""A recipe: how the stages of a run are trained. What a person tunes lives in a TOML file.

``TrainOptions`` says what is trained on what, and what for; a recipe says how, and fits any model.
"""

from __future__ import annotations

import reprlib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import ConfigError, first_line
from trbert_deploy.files import write_text
from trbert_deploy.tasks.pairs import (
    ONLY_SECOND,
    PROTECT,
    PROTECTED,
    TRUNCATION,
    TRUNCATIONS,
)
from trbert_deploy.training.toml_tables import keys_of, merged, to_toml

EXITS = "exits"
STAGES = ("teacher", "guide", "policy", "joint", "hard", EXITS)
#: Those that are run if nobody says otherwise.
USUAL_STAGES = STAGES[:-1]
#: Stages that match the teacher's answers on texts, whether these have labels or not.
DISTILLING = ("joint", "hard", EXITS)
#: Stages that can be trained several times and averaged.
AVERAGED = ("policy", "joint", "hard")
ESTIMATORS = ("gates", "reinforce")
#: The key of a recipe's file that names the recipe whose values the other keys change.
BASE = "base"
HEADING = (
    "A recipe: trbert-deploy train --recipe FILE trains by it (docs/recipes.md).",
    "Keys that are left out have the values of the recipe gates.",
)


class Rule(NamedTuple):
    """What a value must be."""

    expected: str
    holds: Callable[[Any], bool]


def _from(low: float, high: float) -> Rule:
    return Rule(f"{low} to {high}", lambda value: low <= value <= high)


def _one_of(words: Sequence[str]) -> Rule:
    return Rule(f"one of {', '.join(words)}", lambda value: value in words)


_POSITIVE = Rule("more than 0", lambda value: value > 0)
_NOT_NEGATIVE = Rule("0 or more", lambda value: value >= 0)
_SHARE = Rule("a share from 0 to 1", lambda value: 0 <= value <= 1)
_EPOCHS = Rule("more than 0, at most 10000", lambda value: 0 < value <= 10000)
_PATHS = Rule(
    "2 to 1000, since a rollout is judged by the others' mean", lambda value: 2 <= value <= 1000
)
_STAGES = Rule(
    f"some of {', '.join(STAGES)}, each once and in this order",
    lambda value: value and list(value) == [stage for stage in STAGES if stage in value],
)
_TRUNCATION = _one_of(TRUNCATIONS)
_PROTECT = _one_of(PROTECTED)
_AVERAGED = _one_of(AVERAGED)
_ESTIMATOR = _one_of(ESTIMATORS)


def _key(default: Any, help: str, rule: Rule | None = None, example: object = None) -> Any:
    """A key of the file. ``example`` is for one that has no default."""
    return field(default=default, metadata={"help": help, "rule": rule, "example": example})


@dataclass(frozen=True)
class TeacherRecipe:
    """The dense model learns the labels."""

    epochs: float = _key(3.0, "Passes over the data.", _EPOCHS)
    learning_rate: float = _key(5e-5, "Peak learning rate.", _POSITIVE)


@dataclass(frozen=True)
class PolicyRecipe:
    """The policies learn; encoder and head are frozen."""

    epochs: float = _key(1.0, "Passes over the data.", _EPOCHS)
    learning_rate: float = _key(1e-3, "Peak learning rate.", _POSITIVE)
    length_penalty: float = _key(
        1.0,
        "REINFORCE with fixed_penalty: price of keeping all tokens, in units of loss (lambda).",
        _NOT_NEGATIVE,
    )
    rollouts: int = _key(8, "REINFORCE: sampled paths per text (K).", _PATHS)
    imitation_share: float = _key(
        0.5, "REINFORCE: share of the stage in which one path imitates the saliency guide.", _SHARE
    )


@dataclass(frozen=True)
class JointRecipe:
    """All learn, while the computation falls to the wanted one."""

    epochs: float = _key(1.0, "Passes over the data.", _EPOCHS)
    learning_rate: float = _key(3e-5, "Peak learning rate of encoder and head.", _POSITIVE)
    policy_learning_rate: float = _key(1e-3, "Peak learning rate of the policies.", _POSITIVE)
    length_penalty: float = _key(
        1.0, "REINFORCE with fixed_penalty: as in the policy stage.", _NOT_NEGATIVE
    )
    rollouts: int = _key(4, "REINFORCE: paths per text, one of them by the rule.", _PATHS)


@dataclass(frozen=True)
class HardRecipe:
    """Encoder and head learn on what the policies, now frozen, really leave."""

    epochs: float = _key(2.0, "Passes over the data.", _EPOCHS)
    learning_rate: float = _key(5e-5, "Peak learning rate of encoder and head.", _POSITIVE)
    mixed_share: float = _key(
        0.25, "Share of the rows that keep more tokens than wanted, up to all.", _SHARE
    )


@dataclass(frozen=True)
class ExitsRecipe:
    """Exits learn at the cuts, and the encoder for them; the policies are frozen."""

    epochs: float = _key(2.0, "Passes over the data.", _EPOCHS)
    learning_rate: float = _key(3e-5, "Peak learning rate of encoder and head.", _POSITIVE)
    exit_learning_rate: float = _key(5e-4, "Peak learning rate of the exits.", _POSITIVE)
    mutual_weight: float = _key(
        1.0, "Weight of what exits learn from each other; 0 for none.", _NOT_NEGATIVE
    )
    aligned: bool = _key(
        False,
        "What they learn from each other gives way where it opposes the task, for a second "
        "gradient of every step.",
    )
    max_drop: float = _key(
        0.5,
        "Most points that leaving early may cost, and most answers of a hundred that it may "
        "change; --max-drop, where it is given, allows as many as the policies have left of it.",
        _NOT_NEGATIVE,
    )


@dataclass(frozen=True)
class LexiconRecipe:
    """How it is learned what the matches of --lexicon mean, and how far they can be trusted."""

    learning_rate: float = _key(1e-3, "Peak learning rate of what a match means.", _POSITIVE)
    missing_share: float = _key(0.5, "Share of the matches that are left out.", _SHARE)
    wrong_share: float = _key(
        0.3, "Wrong matches that are added, as a share of those that are found.", _SHARE
    )


@dataclass(frozen=True)
class Recipe:
    """How the stages of a run are trained; each key's help says what it is.

    ``None`` stands for a default that depends on more than the recipe: the places of the cuts on
    the estimator and the model.

    Raises:
        ConfigError: a value out of range, or two that do not go together.
    """

    estimator: str = _key(
        "gates",
        "How policies learn: from the gradient of straight-through gates, or by reinforce.",
        _ESTIMATOR,
    )
    fixed_penalty: bool = _key(
        False,
        "REINFORCE: keep the length penalties as they are, instead of adjusting them to 3 times "
        "fewer FLOPs; a --target-speedup or --max-drop that is given adjusts them all the same.",
    )
    stages: tuple[str, ...] = _key(USUAL_STAGES, "Stages to run.", _STAGES)
    cuts: str | None = _key(
        None,
        "Where tokens are dropped: 1,3 is before layers 1 and 3, 0.5 inside layer 0 [default: "
        "inside layer 0 and half-way; where tokens answer at a quarter and five twelfths; for "
        "reinforce before layer 1 and half-way].",
        example="0.5,3",
    )
    seed: int = _key(0, "Of data order, new weights, dropout and rollouts.", _NOT_NEGATIVE)
    truncate: bool = _key(True, "Cut texts longer than the maximum, or refuse them.")
    truncation: str | None = _key(
        None,
        "Which text of a pair is cut: longest_first, only_first or only_second (a query may then "
        "not be too long alone) [default: the model's, or else longest_first].",
        _TRUNCATION,
        example=ONLY_SECOND,
    )
    protect: str | None = _key(
        None,
        "The text of a pair of which no token is dropped: first (such as a query) or second "
        "[default: the model's, or else none].",
        _PROTECT,
        example=PROTECTED[0],
    )
    batch_tokens: int = _key(8192, "Tokens of one optimizer step.", _POSITIVE)
    recombined: float = _key(
        0.0,
        "Texts joined from parts of two training texts, for each training text; the teacher labels "
        "them, and the joint and hard stage learn from them too.",
        _from(0, 100),
    )
    averaged_runs: int = _key(
        3,
        "Times that a stage is trained, each with its own seed; the weights are averaged.",
        _from(1, 100),
    )
    averaged_from: str = _key(
        "hard",
        "The first stage that is trained so often: hard, or joint or policy, from which on runs "
        "share nothing and cost more.",
        _AVERAGED,
    )
    validations: int = _key(
        4,
        "Times that a stage is validated (policy: once); the best checkpoint of each is kept, of "
        "the hard stage also what it begins with.",
        _from(1, 1000),
    )
    warmup_share: float = _key(0.1, "Share of a stage over which its learning rate rises.", _SHARE)
    penalty_ramp: float = _key(
        0.6,
        "Share of the joint stage (with reinforce of the policy stage too) over which the "
        "computation falls to the wanted one.",
        _SHARE,
    )
    save_seconds: float = _key(
        60.0, "Seconds between two saves of a stage's progress.", _NOT_NEGATIVE
    )
    teacher: TeacherRecipe = TeacherRecipe()
    policy: PolicyRecipe = PolicyRecipe()
    joint: JointRecipe = JointRecipe()
    hard: HardRecipe = HardRecipe()
    exits: ExitsRecipe = ExitsRecipe()
    lexicon: LexiconRecipe = LexiconRecipe()

    def __post_init__(self) -> None:
        for key in keys_of(self):
            rule = key.entry.metadata["rule"]
            if rule is not None and key.value is not None and not rule.holds(key.value):
                value = list(key.value) if isinstance(key.value, tuple) else key.value
                raise ConfigError(f"{key} is {value}: expected {rule.expected}")
        if self.cuts is not None:
            ReductionConfig.parse(self.cuts)
        if self.fixed_penalty and self.estimator == "gates":
            raise ConfigError(
                "fixed_penalty is true, but gates learn under a wanted computation: leave it "
                'false, or take estimator = "reinforce"'
            )

    @classmethod
    def named(cls, name: str) -> Recipe:
        """A built-in recipe.

        Raises:
            ConfigError: there is none of this name.
        """
        if name not in RECIPES:
            raise ConfigError(f"unknown recipe {name!r}: expected one of {', '.join(RECIPES)}")
        return RECIPES[name]

    @classmethod
    def found(cls, name: str) -> Recipe:
        """A built-in recipe, or one in a file, as a person names it.

        Raises:
            ConfigError: there is neither, or the file is no recipe.
        """
        if name in RECIPES:
            return cls.named(name)
        path = Path(name)
        if not path.exists():
            raise ConfigError(
                f"recipe {name} is neither a file nor one of {', '.join(RECIPES)}: give one of "
                "these, or a TOML file (docs/recipes.md)"
            )
        if path.is_dir():
            raise ConfigError(f"recipe {name} is a directory: expected a TOML file")
        return cls.read(path)

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Read a TOML file. Keys that are missing have the values of the recipe that the key
        ``base`` names, of gates without it.

        Raises:
            ConfigError: it cannot be read, is no TOML, or has an unknown key or a wrong value.
        """
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as problem:
            raise ConfigError(f"{path} cannot be read as TOML: {first_line(problem)}") from None
        try:
            return cls.from_json(data)
        except ConfigError as problem:
            raise ConfigError(f"{path}: {problem}") from None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        """What tables and keys say, as they are read from a file.

        Raises:
            ConfigError: an unknown key or table, or a wrong value.
        """
        name = data.get(BASE, next(iter(RECIPES)))
        if not isinstance(name, str) or name not in RECIPES:
            raise ConfigError(
                f"{BASE} is {reprlib.repr(name)}: expected one of {', '.join(RECIPES)}"
            )
        return merged(RECIPES[name], {key: data[key] for key in data if key != BASE})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def to_toml(self) -> str:
        """The text of a file that ``read`` makes this recipe of, with what each key means."""
        return to_toml(self, HEADING)

    def write(self, path: Path) -> None:
        """Write ``to_toml``, whole or not at all."""
        write_text(path, self.to_toml())

    @property
    def answers(self) -> dict[str, Any]:
        """What it says of the texts of pairs, as ``EncoderSpec.answers``."""
        said = {TRUNCATION: self.truncation, PROTECT: self.protect}
        return {name: value for name, value in said.items() if value is not None}

    def changed(self, other: Recipe) -> list[str]:
        """The keys in which two recipes differ, as a person sees them."""
        pairs = zip(keys_of(self), keys_of(other), strict=True)
        return [str(own) for own, its in pairs if own.value != its.value]

    def validations_of(self, stage: str) -> int:
        """How often a stage is validated; the short policy stage is at its end alone."""
        return 1 if stage == "policy" else self.validations


#: The built-in recipes. The first is the default.
RECIPES: dict[str, Recipe] = {
    "gates": Recipe(),
    # Exits after the others, so that easy rows leave early.
    "exits": Recipe(stages=STAGES),
    # The four published stages with their fixed penalty (TR-BERT, section 3.3 and appendix).
    "tr-bert": Recipe(
        estimator="reinforce",
        fixed_penalty=True,
        stages=("teacher", "guide", "policy", "joint"),
        teacher=TeacherRecipe(epochs=3.0, learning_rate=3e-5),
        policy=PolicyRecipe(epochs=3.0, learning_rate=3e-5),
        joint=JointRecipe(epochs=3.0, learning_rate=3e-5, policy_learning_rate=3e-5),
    ),
}
