"""The documentation of an installed library, read from its source files and never imported.

Sources are parsed with ``ast``: the docstrings of modules, public classes and public functions
in file order, and the texts that numpy and torch attach to compiled functions by a call
(``add_newdoc``, ``add_docstr``). A section of documentation is a heading, as a reference manual
prints it, and the paragraphs below it.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trbert_deploy.errors import DataError, MissingDependencyError

#: Directories of code that documents nothing for users: tests, other projects' code, leftovers.
_SKIPPED = re.compile(
    r"test|tests|testing|distutils|idlelib|lib2to3|turtledemo|_vendor|site-packages|dist-packages"
)
#: Neighbouring source files are read as one unit until they reach this size.
_UNIT_BYTES = 20_000
_ATTACHING_CALLS = frozenset({"add_newdoc", "add_docstr", "add_docstr_all", "_add_docstr"})
_Documented = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Library:
    """A documented library: its label in the corpus, how it is imported and what installs it.

    ``package`` is None for the standard library; ``extra`` is the extra of this distribution that
    brings it. Each subdirectory of the directory ``whole`` is one unit, whatever its size: its
    files repeat each other.
    """

    label: str
    title: str
    package: str | None
    extra: str = ""
    whole: str = ""


LIBRARIES = (
    Library("torch", "PyTorch", "torch", "train"),
    Library("transformers", "Transformers", "transformers", "train", whole="models"),
    Library("numpy", "NumPy", "numpy", "demo"),
    Library("sympy", "SymPy", "sympy", "demo"),
    Library("networkx", "NetworkX", "networkx", "demo"),
    Library("python", "Python", None),
)


@dataclass(frozen=True)
class Unit:
    """Source files that belong together: one module, or small neighbours in one directory."""

    name: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Section:
    """The documentation of one module, class or function; ``paragraphs`` hold no line breaks."""

    heading: str
    paragraphs: tuple[str, ...]


def find_units(library: Library) -> list[Unit]:
    """All units of an installed library, in the order of their directories and files.

    Raises:
        MissingDependencyError: the library is not installed.
        DataError: it is installed without its source files.
    """
    root = _root(library)
    folders: dict[Path, list[Path]] = {}
    for path in _sources(root):
        parts = path.relative_to(root).parts
        whole = library.whole and parts[0] == library.whole and len(parts) > 2
        folders.setdefault(root.joinpath(*parts[:2]) if whole else path.parent, []).append(path)
    if not folders:
        raise DataError(f"the source files of {library.title} are missing: expected them in {root}")
    units = []
    for folder, paths in folders.items():
        whole = library.whole and folder.parent == root / library.whole
        for files in [paths] if whole else _neighbours(paths):
            units.append(Unit(_dotted(files[0], root, library), tuple(files)))
    return units


def read_sections(unit: Unit, library: Library) -> list[Section]:
    """The documentation of a unit's files, in order; empty where there is none."""
    root = _root(library)
    sections: list[Section] = []
    for path in unit.files:
        module = _dotted(path, root, library)
        title = f"{module} — {library.title} documentation"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):  # a template, or a file for another Python
                continue
        found = [(title, ast.get_docstring(tree) or ""), *_members(tree, f"{module}.")]
        sections += [Section(heading, _paragraphs(text)) for heading, text in found if text]
    return sections


def _root(library: Library) -> Path:
    if library.package is None:
        return Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(library.package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError(
            f"the documentation corpus ({library.title})", library.package, library.extra
        )
    return Path(spec.submodule_search_locations[0])


def _sources(root: Path) -> Iterator[Path]:
    for folder, below, names in os.walk(root):
        below[:] = sorted(name for name in below if not _SKIPPED.fullmatch(name))
        for name in sorted(names):
            if name.endswith(".py") and not name.startswith("test_"):
                yield Path(folder, name)


def _neighbours(paths: list[Path]) -> Iterator[list[Path]]:
    """Runs of neighbouring files, each run of at least ``_UNIT_BYTES`` except the last."""
    run: list[Path] = []
    size = 0
    for path in paths:
        run.append(path)
        size += path.stat().st_size
        if size >= _UNIT_BYTES:
            yield run
            run, size = [], 0
    if run:
        yield run


def _dotted(path: Path, root: Path, library: Library) -> str:
    """``numpy.linalg`` for ``numpy/linalg/__init__.py``."""
    parts = path.relative_to(root).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join((library.package, *parts) if library.package else parts)


def _members(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(heading, text) of the public classes, functions and attached texts below a node.

    The first level carries its module's name as ``prefix``, methods stand under their bare name.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Documented):
            if child.name.startswith("_"):
                continue
            yield _signature(child, prefix), ast.get_docstring(child) or ""
            if isinstance(child, ast.ClassDef):
                yield from _members(child)
        elif isinstance(child, ast.If | ast.Try | ast.With):
            yield from _members(child, prefix)
        elif isinstance(child, ast.Expr | ast.Assign) and isinstance(child.value, ast.Call):
            yield from _attached(child.value)


def _signature(node: _Documented, prefix: str) -> str:
    """``class networkx.classes.graph.Graph`` or, below it, ``add_edge(u, v, **attr)``."""
    if isinstance(node, ast.ClassDef):
        return f"class {prefix}{node.name}"
    arguments = node.args
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args)]
    names += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    names += [each.arg for each in arguments.kwonlyargs]
    names += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    return f"{prefix}{node.name}({', '.join(names[names[:1] in (['self'], ['cls']) :])})"


def _attached(call: ast.Call) -> Iterator[tuple[str, str]]:
    """The text of ``add_newdoc("numpy", "ndarray", text)`` or ``add_docstr(torch.abs, text)``."""
    if not (isinstance(call.func, ast.Name) and call.func.id in _ATTACHING_CALLS):
        return
    strings = [
        node.value
        for node in ast.walk(call)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    names = [text for text in strings if text.isprintable() and " " not in text]
    if not names and call.args:
        names = [ast.unparse(call.args[0])]
    text = "".join(string for string in strings if "\n" in string)
    yield ".".join(names), re.sub(r"\{\w+\}", "", text)  # {places} for shared passages


def _paragraphs(text: str) -> tuple[str, ...]:
    return tuple(" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip())
