"""How many compiled kernels PyTorch's matrix library keeps on CPUs."""

from __future__ import annotations

import os

#: Of MiniLM's chain over 488 lengths 86 MiB were held with oneDNN's default, 1024, and 13 with 16.
CAPACITY = 64


def bound_primitive_cache() -> None:
    """Keep few kernels: batches have ever new shapes, and oneDNN keeps what it compiled for each.

    Read when it computes first; ``ONEDNN_PRIMITIVE_CACHE_CAPACITY`` in the environment decides
    instead where it is set.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(CAPACITY))
