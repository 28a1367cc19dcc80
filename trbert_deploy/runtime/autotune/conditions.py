"""What a measured time depends on: under any other conditions it is measured again."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.config import ReductionConfig
from trbert_deploy.files import sha256
from trbert_deploy.machine import cores, gpus, processor
from trbert_deploy.runtime.backends.registry import BACKENDS
from trbert_deploy.runtime.backends.tensorrt.engine_set import ENGINE_MANIFEST, engine_set_names
from trbert_deploy.runtime.chain import Chain


def conditions(
    bundle: Bundle, reduction: ReductionConfig, threads: int, engines: bool = True
) -> dict[str, Any]:
    """What the time depends on that a bundle takes, as JSON values.

    Args:
        reduction: the cuts with the rules that it runs with.
        threads: threads of one graph.
        engines: whether the bundle's engines may run.
    """
    distributions = {each for info in BACKENDS.values() for each in info.distributions}
    sets = {
        name: sha256(bundle.engines_path / name / ENGINE_MANIFEST)
        for name in engine_set_names(bundle)
    }
    return {
        "bundle": bundle.digest,
        "engines": sets if engines else None,
        "reduction": reduction.to_json(),
        "processor": processor(),
        "cores": cores(),
        "threads": threads,
        "gpus": gpus(),
        "visible gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "versions": {each: _version(each) for each in sorted({"trbert-deploy", *distributions})},
    }


def chain_conditions(bundle: Bundle, chain: Chain) -> dict[str, Any]:
    """What the time depends on that a chain of a bundle takes, as JSON values."""
    backend = dict(chain.backend.description)  # with its threads
    return {**conditions(bundle, chain.reduction, 0), "backend": backend}


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
