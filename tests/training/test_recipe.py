"""Recipes: what is refused, what a file says, what is written; that the docs name every key."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trbert_deploy.commands.train import train
from trbert_deploy.errors import ConfigError
from trbert_deploy.training.recipe import (
    AVERAGED,
    RECIPES,
    STAGES,
    HardRecipe,
    JointRecipe,
    PolicyRecipe,
    Recipe,
    TeacherRecipe,
)
from trbert_deploy.training.toml_tables import Key, keys_of

ROOT = Path(__file__).parents[2]

positive = st.floats(0, 1e4, exclude_min=True)
shares = st.floats(0, 1)
paths = st.integers(2, 1000)
recipes = st.builds(
    Recipe,
    stages=st.sets(st.sampled_from(STAGES), min_size=1).map(
        lambda stages: tuple(stage for stage in STAGES if stage in stages)
    ),
    cuts=st.none() | st.lists(st.integers(0, 20), unique=True).map(
        lambda steps: ",".join(f"{step / 2:g}" for step in sorted(steps))
    ),
    seed=st.integers(0, 2**63 - 1),
    truncate=st.booleans(),
    batch_tokens=st.integers(1, 2**63 - 1),
    averaged_runs=st.integers(1, 100),
    averaged_from=st.sampled_from(AVERAGED),
    validations=st.integers(1, 1000),
    warmup_share=shares,
    penalty_ramp=shares,
    save_seconds=st.floats(0, 1e300),
    teacher=st.builds(TeacherRecipe, positive, positive),
    policy=st.builds(PolicyRecipe, positive, positive, positive, paths, shares),
    joint=st.builds(JointRecipe, positive, positive, positive, positive, paths),
    hard=st.builds(HardRecipe, positive, positive, shares),
) | st.builds(
    Recipe,
    estimator=st.just("reinforce"),
    fixed_penalty=st.booleans(),
) | st.builds(Recipe, recombined=st.floats(0, 100))  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes") / "recipe.toml"


@given(recipe=recipes)
def test_what_is_written_is_read(file: Path, recipe: Recipe) -> None:
    recipe.write(file)
    assert Recipe.read(file) == recipe
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_a_written_file_explains_every_key(file: Path) -> None:
    Recipe().write(file)
    lines = file.read_text().splitlines()
    for key in keys_of(Recipe()):
        place = lines.index(f"# {key.entry.metadata['help']}", lines.index(f"[{key.table}]")) if (
            key.table
        ) else lines.index(f"# {key.entry.metadata['help']}")  # fmt: skip
        assert re.match(rf"(# )?{key.entry.name} = ", lines[place + 1])
    # What has no default is set by taking the comment's mark away.
    file.write_text("\n".join(line.replace("# cuts =", "cuts =") for line in lines))
    assert Recipe.read(file) == Recipe(cuts="0.5,3")


@pytest.mark.parametrize(
    ("text", "recipe"),
    [
        ("", Recipe()),
        ("[joint]\nepochs = 2", Recipe(joint=JointRecipe(epochs=2.0))),
        ('cuts = "1,3"\nhard.epochs = 0.5', Recipe(cuts="1,3", hard=HardRecipe(epochs=0.5))),
        ('base = "tr-bert"\nseed = 7', replace(RECIPES["tr-bert"], seed=7)),
        ('\ufeffbase = "gates"\r\nseed = 7\r\n', Recipe(seed=7)),
    ],
)
def test_what_is_missing_has_the_default_of_the_base(file: Path, text: str, recipe: Recipe) -> None:
    file.write_text(text, encoding="utf-8", newline="")
    assert Recipe.read(file) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[joint]\nlearning_rate = 0", r"\[joint\] learning_rate is 0: expected more than 0"),
        (
            "[joint]\nlearnig_rate = 1",
            r"\[joint\] learnig_rate is unknown: did you mean \[joint\] ",
        ),
        ("[jiont]\nepochs = 1", r"\[jiont\] is unknown: did you mean \[joint\]\?"),
        ("[joint]\ncuts = '1'", r"\[joint\] cuts is unknown: did you mean cuts above the first"),
        ("[joint]\nx.y = 1", r"\[joint\] x is unknown: expected epochs, learning_rate"),
        (
            "[bread]\nx = 1",
            r"\[bread\] is unknown: expected \[teacher\], ",
        ),
        ("hard_epochs = 1", r"hard_epochs is unknown: did you mean \[hard\] epochs\?"),
        ("rollouts = 8", r"did you mean \[policy\] rollouts or \[joint\] rollouts\?"),
        (
            '"a\\nb" = 1',
            "a\N{REPLACEMENT CHARACTER}b is unknown: expected estimator, ",
        ),
        ("joint = 3", r"joint is 3: expected a table, \[joint\]"),
        ("[seed]", "seed is {}: expected a whole number"),
        ("cuts = [1, 3]", r"cuts is \[1, 3\]: expected text in quotes"),
        ("truncate = 'no'", "truncate is 'no': expected true or false"),
        ("seed = 0.5", "seed is 0.5: expected a whole number"),
        ("seed = 99999999999999999999", "seed is 99999999999999999999: expected a whole number"),
        ("[hard]\nepochs = '2'", r"\[hard\] epochs is '2': expected a number"),
        ("[hard]\nepochs = inf", r"\[hard\] epochs is inf: expected a number"),
        ("stages = 'joint'", "stages is 'joint': expected a list"),
        ("stages = ['dance']", r"stages is \['dance'\]: expected some of teacher, guide, policy"),
        ("stages = []", r"stages is \[\]: expected some of teacher"),
        ("base = 'bread'", "base is 'bread': expected one of gates, exits, tr-bert"),
        ("base = []", r"base is \[\]: expected one of gates, exits, tr-bert"),
        ("seed 7", "cannot be read as TOML: Expected '=' after a key"),
        ("seed = 1\nseed = 2", "cannot be read as TOML: "),
        ("seed = " + "[" * 20_000, "cannot be read as TOML: "),
        ("x = '\udcff'", "cannot be read as TOML: 'utf-8' codec"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(
    file: Path, text: str, message: str
) -> None:
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=message) as refused:
        Recipe.read(file)
    assert str(refused.value).startswith(str(file))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": ("policy", "teacher")}, "each once and in this order"),
        ({"policy": PolicyRecipe(rollouts=1)}, r"\[policy\] rollouts is 1: expected 2 to 1000"),
        ({"joint": JointRecipe(rollouts=1)}, r"\[joint\] rollouts is 1: expected 2 to 1000"),
        ({"policy": PolicyRecipe(imitation_share=1.5)}, r"\[policy\] imitation_share is 1.5: exp"),
        ({"hard": HardRecipe(mixed_share=-0.1)}, "expected a share from 0 to 1"),
        ({"warmup_share": 2.0}, "warmup_share is 2.0: expected a share from 0 to 1"),
        ({"penalty_ramp": float("nan")}, "penalty_ramp is nan: expected a share from 0 to 1"),
        ({"policy": PolicyRecipe(epochs=0)}, r"\[policy\] epochs is 0: expected more than 0, at"),
        ({"hard": HardRecipe(epochs=1e300)}, "expected more than 0, at most 10000"),
        ({"teacher": TeacherRecipe(learning_rate=-1.0)}, r"\[teacher\] learning_rate is -1.0: exp"),
        ({"joint": JointRecipe(length_penalty=-1.0)}, r"\[joint\] length_penalty is -1.0: expect"),
        ({"estimator": "guess"}, "estimator is guess: expected one of gates, reinforce"),
        ({"seed": -1}, "seed is -1: expected 0 or more"),
        ({"batch_tokens": 0}, "batch_tokens is 0: expected more than 0"),
        ({"validations": 0}, "validations is 0: expected 1 to 1000"),
        ({"averaged_runs": 0}, "averaged_runs is 0: expected 1 to 100"),
        ({"recombined": -0.5}, "recombined is -0.5: expected 0 to 100"),
        ({"save_seconds": -1.0}, "save_seconds is -1.0: expected 0 or more"),
        ({"cuts": "1,1"}, "cuts 1,1: 1 is repeated"),
        ({"cuts": "1.3"}, "cut 1.3: expected a layer number"),
        ({"cuts": "x"}, "'x' is not a number"),
        ({"fixed_penalty": True}, "fixed_penalty is true, but gates learn under a wanted"),
    ],
)
def test_values_out_of_range_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe(**changes)


def test_a_recipe_is_found_by_its_name_or_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gates").write_text("seed = 3")
    assert Recipe.found("gates") == Recipe.named("gates") == Recipe()
    assert Recipe.found("./gates") == Recipe(seed=3)
    assert Recipe.found("tr-bert").fixed_penalty
    for name, message in (
        ("bread", "recipe bread is neither a file nor one of gates, exits, tr-bert"),
        (".", "recipe . is a directory: expected a TOML file"),
    ):
        with pytest.raises(ConfigError, match=message):
            Recipe.found(name)
    message = "unknown recipe 'bread': expected one of gates, exits, tr-bert"
    with pytest.raises(ConfigError, match=message):
        Recipe.named("bread")


def test_what_differs_is_named_as_in_the_file() -> None:
    other = Recipe(seed=1, joint=JointRecipe(epochs=9.0), hard=HardRecipe(epochs=9.0))
    assert Recipe().changed(other) == ["seed", "[joint] epochs", "[hard] epochs"]
    assert Recipe().changed(Recipe()) == []


def test_the_recipes_of_the_quality_tables_are_recipes() -> None:
    files = list((ROOT / "benchmarks" / "quality" / "recipes").glob("*.toml"))
    assert files and all(Recipe.read(path) != Recipe() for path in files)


def as_written(key: Key) -> str:
    if key.value is None:
        return ""
    if isinstance(key.value, tuple):
        return ", ".join(key.value)
    return f"{key.value:g}" if isinstance(key.value, float) else str(key.value).lower()


def test_the_documented_keys_are_those_that_there_are() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if re.match(r"\| `\[?\w", line)]
    pairs = zip(keys_of(RECIPES["gates"]), keys_of(RECIPES["tr-bert"]), strict=True)
    expected = []
    for gates, published in pairs:
        values = as_written(gates), as_written(published)
        other = values[1] if values[1] != values[0] else ""
        expected.append(f"| `{gates}` | {values[0]} | {other} | {gates.entry.metadata['help']} |")
    assert rows == expected


def test_the_help_of_train_fits_one_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    told = CliRunner().invoke(train, ["--help"], terminal_width=80)
    assert len(told.output.splitlines()) <= 40
    assert len(train.params) <= 17
