"""Outputs of many rows: kept in a file, given out by batches; the regression beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from trbert_deploy.modeling.checkpoints.weight_files import write_safetensors
from trbert_deploy.modeling.layouts.packed import PackedLayout
from trbert_deploy.tasks.outputs import Output, rows_of_outputs
from trbert_deploy.tasks.text_classification import TextClassification
from trbert_deploy.training.row_outputs import RowOutputs
from trbert_deploy.training.stages.regression import Regression


class Both(TextClassification):
    outputs = (Output("row", "row"), Output("token", "token"))


TASK = Both(("a", "b"))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(1, 3))
def test_outputs_come_back_from_a_file_and_in_batches(lengths: list[int], width: int) -> None:
    rng = np.random.default_rng(0)
    rows = tuple(
        {
            "row": rng.normal(size=2).astype(np.float32),
            "token": rng.normal(size=(length, width)).astype(np.float32),
        }
        for length in lengths
    )
    tensors = {name: tensor.numpy() for name, tensor in RowOutputs(rows).tensors().items()}
    found = RowOutputs.of_tensors(tensors)
    assert len(found) == len(rows)
    for ours, theirs in zip(found, rows, strict=True):
        assert ours.keys() == theirs.keys()
        for name, values in theirs.items():
            np.testing.assert_array_equal(ours[name], values)
    order = rng.permutation(len(rows))
    layout = PackedLayout(np.array([lengths[row] for row in order]))
    batch = found.of_batch(TASK, order, layout)
    arrays = {name: values.numpy() for name, values in batch.items()}
    again = rows_of_outputs(TASK.outputs, arrays, layout.lengths.tolist())
    for row, outputs in zip(order, again, strict=True):
        for name, values in outputs.items():
            np.testing.assert_array_equal(values, rows[row][name])


def test_outputs_survive_a_file(tmp_path: Path) -> None:
    rows = RowOutputs(({"row": np.ones(2, np.float32)}, {"row": np.zeros(2, np.float32)}))
    write_safetensors(tmp_path / "rows.safetensors", (rows + rows).tensors())
    found = RowOutputs.of_tensors(load_file(tmp_path / "rows.safetensors"))
    assert [row["row"].tolist() for row in found] == [[1, 1], [0, 0], [1, 1], [0, 0]]
    assert list(RowOutputs.of_tensors(RowOutputs(()).tensors())) == []


@pytest.mark.parametrize("constant", [False, True])
def test_the_regression_finds_a_linear_map(constant: bool) -> None:
    torch.manual_seed(0)
    states, weight, bias = torch.randn(500, 8), torch.randn(8, 8), torch.randn(8)
    if constant:
        states[:, 0] = 3.0  # which says what the bias says
    wanted = states @ weight.T + bias
    regression = Regression(8, torch.device("cpu"))
    for part in range(0, 500, 100):
        regression.add(states[part : part + 100], wanted[part : part + 100])
    found = torch.from_numpy(regression.solved())
    assert found.shape == (8, 9)
    error = states @ found[:, :-1].T + found[:, -1] - wanted
    assert error.abs().max() < 0.05
