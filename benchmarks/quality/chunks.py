"""A long text in chunks, each read by the dense model alone, whose states are pooled.

What studies of long documents compare with (Pappagari et al. 2019; Dai et al. 2022 for legal
texts): no token is dropped, but no token sees another chunk's either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from students import Student

from trbert_deploy.modeling.heads.head import Outputs
from trbert_deploy.modeling.layouts.layout import largest_of_rows
from trbert_deploy.modeling.layouts.packed import PackedLayout
from trbert_deploy.training.batches import PackedBatch

Pooling = Literal["mean", "max"]


def chunk_places(length: int, size: int) -> list[list[int]]:
    """Places in a row that each of its chunks is made of: its first token, a part, its last one.

    Parts are of about one length, so that no chunk is a few words long.

    Args:
        length: tokens of the row.
        size: most tokens of a chunk, at least 3.
    """
    if length <= size:
        return [list(range(length))]
    body = np.arange(1, length - 1)
    parts = np.array_split(body, -(-len(body) // (size - 2)))
    return [[0, *part.tolist(), length - 1] for part in parts]


@dataclass(frozen=True)
class ChunkStudent(Student):
    """A dense model that reads chunks; the head is given their first tokens' states, pooled.

    Attributes:
        size: most tokens of a chunk.
        pooling: of the chunks' states, the mean or the largest value in each place.
    """

    size: int = 512
    pooling: Pooling = "mean"

    def forward(
        self, batch: PackedBatch, training: bool = False
    ) -> tuple[Outputs, list[list[int]]]:
        """The outputs of rows, and the tokens of every chunk."""
        device = batch.layout.counts.device
        chunks, owners = self._chunks(batch.layout.lengths)
        places = torch.tensor([place for chunk in chunks for place in chunk], device=device)
        layout = PackedLayout(np.array(list(map(len, chunks)), np.int64), device)
        hidden = self.model.embed(batch.input_ids[places], batch.token_type_ids[places], layout)
        hidden = self.model.encoder.run_steps(hidden, layout, 0, self.model.spec.num_steps)
        states = layout.first(hidden)  # [chunks, H]
        row, rows = torch.tensor(owners, device=device), len(batch.rows)
        if self.pooling == "max":
            pooled = largest_of_rows(states, row, rows)
        else:
            sums = states.new_zeros(rows, states.shape[1]).index_add(0, row, states)
            pooled = sums / torch.bincount(row, minlength=rows)[:, None]
        alone = PackedLayout(np.ones(rows, np.int64), device)
        return self.model.head(pooled, alone), [[len(chunk)] for chunk in chunks]

    def _chunks(self, lengths: Sequence[int]) -> tuple[list[list[int]], list[int]]:
        """Places in the batch of every chunk's tokens, and the row that it is of."""
        chunks, owners, start = [], [], 0
        for row, length in enumerate(lengths):
            for places in chunk_places(int(length), self.size):
                chunks.append([start + place for place in places])
                owners.append(row)
            start += int(length)
        return chunks, owners
