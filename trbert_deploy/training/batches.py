"""Packed batches of rows: about equally many tokens each, without padding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from trbert_deploy.modeling.layouts.packed import PackedLayout
from trbert_deploy.runtime.token_state import packed_matches
from trbert_deploy.tasks.task import NO_TOKEN
from trbert_deploy.training import processes
from trbert_deploy.training.data import TrainingRow
from trbert_deploy.training.processes import Share


@dataclass(frozen=True)
class PackedBatch:
    """Rows of one step that this process takes, packed one behind the other.

    Attributes:
        rows: [B] int64, indices of the rows in their data set.
        input_ids, token_type_ids: [T] int64.
        protected: [T] bool, tokens that must survive every cut.
        matches: [T, M, 3 or 4] int64, what a lexicon says of the tokens; None for nothing.
        targets: [B, ...], as the head takes them; of tokens [B, S, ...].
        layout: where the rows lie.
        share: what they are of the step's rows.
    """

    rows: np.ndarray
    input_ids: Tensor
    token_type_ids: Tensor
    protected: Tensor
    targets: Tensor
    layout: PackedLayout
    share: Share
    matches: Tensor | None = None


def plan_batches(
    lengths: Sequence[int], batch_tokens: int, epochs: float = 1.0, seed: int | None = None
) -> list[list[int]]:
    """Row indices of every batch of a training run, in order.

    Args:
        lengths: tokens per row.
        batch_tokens: a batch closes when one more row would exceed this; a longer row is a
            batch of its own.
        epochs: passes over the rows; a part of one ends after that share of its batches.
        seed: each epoch takes the rows in another random order; None keeps them as they are.
    """
    plan: list[list[int]] = []
    for epoch in range(math.ceil(epochs)):
        order = np.arange(len(lengths))
        if seed is not None:
            np.random.default_rng([seed, epoch]).shuffle(order)
        batches: list[list[int]] = []
        used = batch_tokens
        for row in order.tolist():
            if used + lengths[row] > batch_tokens:
                batches.append([])
                used = 0
            batches[-1].append(row)
            used += lengths[row]
        share = min(1.0, epochs - epoch)
        plan += batches[: max(1, round(share * len(batches)))]
    return plan


def stacked_targets(targets: Sequence[Any]) -> Tensor:
    """Targets of rows as one tensor: [B, ...], of tokens [B, S, ...] with ``NO_TOKEN`` behind."""
    arrays = [np.asarray(target) for target in targets]
    if len({array.shape for array in arrays}) < 2:
        return torch.from_numpy(np.array(arrays))
    longest = max(map(len, arrays))
    stacked = np.full((len(arrays), longest, *arrays[0].shape[1:]), NO_TOKEN, arrays[0].dtype)
    for row, array in zip(stacked, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(stacked)


class _Rows(torch.utils.data.Dataset[tuple[int, TrainingRow]]):
    def __init__(self, rows: Sequence[TrainingRow]) -> None:
        self.rows = rows

    def __getitem__(self, index: int) -> tuple[int, TrainingRow]:
        return index, self.rows[index]


def load_batches(
    rows: Sequence[TrainingRow],
    plan: Sequence[list[int]],
    device: torch.device,
    shared: bool = False,
) -> DataLoader[PackedBatch]:
    """The batches of ``plan``, packed.

    Args:
        shared: all processes load this plan, and each takes its share of every batch.
    """
    part = (processes.index(), processes.count()) if shared else (0, 1)

    def collate(members: list[tuple[int, TrainingRow]]) -> PackedBatch:
        members = sorted(members, key=lambda member: len(member[1]))  # as PackedLayout likes it
        share = Share.of(np.array([len(row) for _, row in members], np.int64), *part)
        members = [members[place] for place in share.places]
        lengths = np.array([len(row) for _, row in members], np.int64)

        def packed(parts: list[np.ndarray]) -> Tensor:
            return torch.from_numpy(np.concatenate(parts)).to(device)

        matches = packed_matches([row.tokens for _, row in members])
        return PackedBatch(
            rows=np.array([index for index, _ in members], np.int64),
            input_ids=packed([row.tokens.input_ids for _, row in members]),
            token_type_ids=packed([row.tokens.token_type_ids for _, row in members]),
            protected=packed([row.tokens.protected for _, row in members]),
            targets=stacked_targets([row.target for _, row in members]).to(device),
            layout=PackedLayout(lengths, device),
            share=share,
            matches=None if matches is None else torch.from_numpy(matches).to(device),
        )

    return DataLoader[Any](_Rows(rows), batch_sampler=list(plan), collate_fn=collate)
