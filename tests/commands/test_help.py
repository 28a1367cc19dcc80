"""The help of every command fits one screen, and docs/commands.md has the same options."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from trbert_deploy.bounds import MOST_ROUNDS, MOST_TEXTS, MOST_THREADS, MOST_TOKENS
from trbert_deploy.cli import cli
from trbert_deploy.runtime.backends.registry import BACKENDS

MOST_LINES = 40
DOCS = Path(__file__).parents[2] / "docs" / "commands.md"
COMMANDS = sorted(cli.commands)
#: The section that is about no command.
FILES = "Files"


def options_of(name: str) -> dict[str, click.Option]:
    """What the help calls an option, such as ``--threads N`` -> the option."""
    command = cli.commands[name]
    context = click.Context(command)
    found = {}
    for option in command.params:
        if isinstance(option, click.Option):
            record = option.get_help_record(context)
            assert record is not None, f"{option.name} is hidden"
            found[record[0]] = option
    return found


def documented() -> dict[str, dict[str, str]]:
    """Command -> its options in docs/commands.md -> their defaults there."""
    found: dict[str, dict[str, str]] = {name: {} for name in COMMANDS}
    for section in re.split(r"^## ", DOCS.read_text(encoding="utf-8"), flags=re.M)[1:]:
        heading = section.partition("\n")[0]
        if heading == FILES:
            continue
        rows = re.findall(r"^\| `(--[^`]+)` \| (.*?) \| .*\|$", section, flags=re.M)
        names = re.split(", | and ", heading)
        assert set(names) <= set(COMMANDS), f"{heading}: no command"
        for name in names:
            for option, default in rows:
                option = option.replace("\\|", "|")
                assert option not in found[name], f"{option} of {name} stands twice"
                found[name][option] = default
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_one_screen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert len(lines) <= MOST_LINES
    assert max(map(len, lines)) <= 80
    # Each option on a line of its own, but for those that say which backends there are.
    options = list(takewhile(str.strip, lines[lines.index("Options:") + 1 :]))
    assert len(options) - len(options_of(name)) <= 3


@pytest.mark.parametrize("name", COMMANDS)
def test_the_reference_has_the_options_that_there_are(name: str) -> None:
    rows = documented()[name]
    options = options_of(name)
    assert set(rows) == set(options)
    for option, default in rows.items():
        known = options[option].default
        if options[option].required:
            assert default == "required"
        elif isinstance(known, str | int | Path) and not isinstance(known, bool):
            assert default == f"`{known}`", option


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_does(name: str) -> None:
    assert all(option.help for option in options_of(name).values())


def test_the_reference_says_what_auto_tries() -> None:
    *others, last = [name for name, info in BACKENDS.items() if info.auto]
    text = " ".join(DOCS.read_text(encoding="utf-8").split())
    assert f"`--backend auto` measures {', '.join(others)} and {last} once" in text


def test_the_reference_has_the_limits() -> None:
    limits = (
        f"{MOST_THREADS:,} threads, {MOST_TEXTS:,} texts a call, {MOST_ROUNDS:,} rounds, "
        f"{MOST_TOKENS:,} tokens"
    )
    assert limits in DOCS.read_text(encoding="utf-8")


HUGE = "99999999999999999999"


def whole_numbers() -> list[tuple[str, str]]:
    """Every command and option of it that takes whole numbers."""
    found = []
    for name in COMMANDS:
        for option in options_of(name).values():
            if (option.metavar or "").startswith("N") and option.metavar != "NAME":
                found.append((name, option.opts[0]))
            assert not isinstance(option.type, click.types.IntParamType), option.opts
    return found


@pytest.mark.parametrize(("name", "option"), whole_numbers())
@pytest.mark.parametrize("value", [HUGE, "-1", "1.5", "many", "9" * 5000])
def test_a_number_out_of_range_is_wrong_usage(name: str, option: str, value: str) -> None:
    result = CliRunner().invoke(cli, [name, option, value])
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert f"'{option}'" in line and "expected" in line


def test_whole_numbers_are_found() -> None:
    found = set(whole_numbers())
    assert {("predict", "--threads"), ("bench", "--batch"), ("export", "--round-to")} <= found
    assert {("train", "--max-length"), ("compress", "--max-length")} <= found
    assert len(found) >= 20
