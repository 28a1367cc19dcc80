"""Every error the toolkit raises on purpose.

Each message is one line that says what was wrong, what was received, what was
expected and what to do. The command line prints it and exits with code 1; any
other exception is a bug and keeps its traceback.

    TrbertError
    ├── ConfigError             an option or a configuration value breaks a rule
    ├── DataError               training or input data cannot be used
    ├── FileFormatError         a file is missing, damaged, altered or of an unknown version
    │   ├── CheckpointError     a PyTorch checkpoint directory
    │   ├── BundleError         an exported bundle
    │   └── EngineError         a TensorRT engine or its manifest
    ├── LengthError             a text or a shape is longer than what was built
    ├── ParityError             an exported graph does not reproduce PyTorch
    ├── OutputError             a model's output is no number
    ├── DeviceError             an accelerator is needed and none answers
    ├── StorageError            the disk refused to read or write
    └── MissingDependencyError  an optional package is not installed
"""

from __future__ import annotations

from collections.abc import Iterable


class TrbertError(Exception):
    """Base class; ``str(error)`` is the one line a user reads."""


class ConfigError(TrbertError, ValueError):
    """An option or a configuration value breaks a rule."""


class DataError(TrbertError, ValueError):
    """Training or input data cannot be used."""


class FileFormatError(TrbertError):
    """A file is missing, damaged, altered or of an unknown version."""


class CheckpointError(FileFormatError):
    """A checkpoint directory cannot be read."""


class BundleError(FileFormatError):
    """A bundle cannot be read."""


class EngineError(FileFormatError):
    """An engine cannot be built, read or used."""


class LengthError(TrbertError, ValueError):
    """A text or a shape is longer than what was built."""


class ParityError(TrbertError):
    """An exported graph does not reproduce PyTorch."""


class OutputError(TrbertError):
    """A model's output is no number, so that there is no answer."""


class DeviceError(TrbertError):
    """An accelerator is needed and none answers."""


class StorageError(TrbertError):
    """The disk refused to read or write."""


class MissingDependencyError(TrbertError, ImportError):
    """An optional package is not installed.

    Args:
        what: what needs the package, in the user's words.
        package: the package that is missing.
        extras: of this distribution; each of them brings it.
    """

    def __init__(self, what: str, package: str, *extras: str) -> None:
        advice = " or ".join(f"pip install 'trbert-deploy[{extra}]'" for extra in extras)
        super().__init__(
            f"{what} needs the package {package}, which is not installed: run {advice}"
        )


def first_line(problem: BaseException) -> str:
    """The first line of another library's message, as a terminal can show it."""
    return printable((str(problem).strip() or type(problem).__name__).splitlines()[0])


def printable(line: str) -> str:
    """A line with a mark in the place of each letter that is none, as damaged files have them."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line
    )


def few(names: Iterable[object], most: int = 5) -> str:
    """Names as one line shows them: the first ones, and how many there are besides."""
    shown = [printable(str(name)) for name in names]
    cut = [name if len(name) <= 40 else f"{name[:39]}…" for name in shown[:most]]
    more = f" and {len(shown) - most:,} more" if len(shown) > most else ""
    return ", ".join(cut) + more
