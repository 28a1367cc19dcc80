"""Manifests of earlier releases, turned into today's step by step.

A step takes the content of a manifest of its version and gives that of the next one. A bundle that
an earlier release made keeps loading, and is never written to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

#: Task names of version 2 -> today's.
_TASKS = {"sequence-classification": "text-classification"}


def _from_2(content: Mapping[str, Any]) -> dict[str, Any]:
    """Version 2 named tasks in its own way, and listed a graph's variants among the files only."""
    encoder = dict(content["encoder"])
    encoder["task"] = _TASKS.get(encoder["task"], encoder["task"])
    graphs = []
    for graph in content["graphs"]:
        prefix, suffix = f"{graph['name']}.", ".onnx"
        variants = [
            name.removeprefix(prefix).removesuffix(suffix)
            for name in content["files"]
            if name.startswith(prefix) and name.endswith(suffix) and name != f"{graph['name']}.onnx"
        ]
        graphs.append({**graph, "variants": ["masked", *sorted(variants)]})
    return {**content, "format_version": 3, "encoder": encoder, "graphs": graphs}


def _from_3(content: Mapping[str, Any]) -> dict[str, Any]:
    """Version 3 knew no outputs in which dropped tokens take part, and so none of their graphs."""
    return {**content, "format_version": 4}


#: Version -> what turns its manifest into the next version's.
UPGRADES: dict[int, Callable[[Mapping[str, Any]], dict[str, Any]]] = {2: _from_2, 3: _from_3}


def upgraded(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The content of a manifest in today's format.

    Raises:
        KeyError, TypeError: an entry is missing or of a wrong kind.
    """
    while content["format_version"] in UPGRADES:
        content = UPGRADES[content["format_version"]](content)
    return content
