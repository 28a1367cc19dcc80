"""What tests of whole commands share: a file of rows, and a command that succeeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from trbert_deploy.cli import cli


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Write rows as JSON lines; the path, as a command takes it."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run(*arguments: object) -> str:
    """Run a command that must succeed: what it printed."""
    result = CliRunner().invoke(cli, [str(each) for each in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output
