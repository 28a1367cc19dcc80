"""Options of the fuzzing: how many cases, or which one."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fuzz")
    group.addoption("--fuzz-cases", type=int, default=None, help="Cases, from 0 on.")
    group.addoption("--fuzz-case", type=int, default=None, help="This case alone.")
