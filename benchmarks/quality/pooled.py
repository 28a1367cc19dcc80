"""Neighbours averaged between two layers, at one rate for all texts.

What rerankers are made faster with elsewhere (LTC, Zhuang et al. 2026): first layers read all
tokens, since query and passage meet there, and later ones the mean of every few neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from students import Student

from trbert_deploy.modeling.heads.head import Outputs
from trbert_deploy.modeling.layouts.packed import PackedLayout
from trbert_deploy.training.batches import PackedBatch


def group_sizes(length: int, ratio: float) -> NDArray[np.int64]:
    """Tokens of each group of neighbours in a row: the first token alone, the others evenly.

    Args:
        length: tokens of the row.
        ratio: groups over tokens, rounded up as ``select`` rounds.
    """
    groups = max(1, int(np.ceil(ratio * length - 1e-9)))
    if groups == 1:
        return np.array([length], np.int64)
    sizes = [len(part) for part in np.array_split(np.arange(length - 1), groups - 1)]
    return np.array([1, *(size for size in sizes if size)], np.int64)


@dataclass(frozen=True)
class PooledStudent(Student):
    """A model whose one cut averages neighbours, as many as the cut's ratio says."""

    def forward(
        self, batch: PackedBatch, training: bool = False
    ) -> tuple[Outputs, list[list[int]]]:
        """The outputs of rows, and the tokens of each before and behind the cut."""
        model, device = self.model, batch.layout.counts.device
        (cut,) = model.reduction.cuts
        lengths = batch.layout.lengths
        sizes = [group_sizes(int(length), cut.rule.value) for length in lengths]
        groups = np.array([len(each) for each in sizes], np.int64)
        counts = torch.from_numpy(np.concatenate(sizes)).to(device)
        hidden = model.embed(batch.input_ids, batch.token_type_ids, batch.layout)
        hidden = model.encoder.run_steps(hidden, batch.layout, 0, cut.step)
        owner = torch.repeat_interleave(counts)
        sums = hidden.new_zeros(len(counts), hidden.shape[1]).index_add(0, owner, hidden)
        pooled = sums / counts[:, None].to(hidden.dtype)
        begins = counts.cumsum(0) - counts
        layout = PackedLayout(groups, device, batch.layout.positions[begins])
        pooled = model.encoder.run_steps(pooled, layout, cut.step, model.spec.num_steps)
        return model.head(pooled, layout), np.stack([lengths, groups], 1).tolist()
