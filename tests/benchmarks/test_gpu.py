"""The benchmark on a GPU, on the CPU: every case is measured and written down."""

from __future__ import annotations

import gpu
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from trbert_deploy.modeling.device_chain import DeviceChain, PackedRows

SHAPES = {"small": (2, 32, 4), "deep": (4, 16, 2)}


def test_every_case_is_measured() -> None:
    figures = gpu.run_all(SHAPES, ((1, 40), (3, 24)), ("fp32", "bf16"), "cpu", rounds=1)
    assert [(one.model, one.rows, one.length, one.precision) for one in figures] == [
        (model, rows, length, precision)
        for model in SHAPES
        for rows, length in ((1, 40), (3, 24))
        for precision in ("fp32", "bf16")
        for _ in ("recorded", "launched")
    ]
    for one in figures:
        assert one.flops > 1.0 and one.dense_ms > 0.0 < one.reduced_ms
    page = gpu.page(figures, "cpu", 1)
    assert all((one.varlen_ms is None) == (one.rows == 1) for one in figures)
    assert "leave 50 % and 15 %\n" in page and "| deep | 3 x 24 | bf16 | one recording |" in page


def figures_of(**changes: object) -> gpu.Figures:
    values = {"model": "m", "recorded": True, "rows": 32, "length": 512, "precision": "fp16"}
    times = {"dense_ms": 10.0, "varlen_ms": 12.0, "reduced_ms": 5.0}
    return gpu.Figures(**{**values, **times, "flops": 3.0, "cut_share": 0.04, **changes})


def test_shares_are_of_the_saving_in_operations() -> None:
    one = figures_of()
    shares = (one.speedup, one.reached, one.reached_over_varlen)
    assert shares == pytest.approx((2.0, 2 / 3, 0.8))
    page = gpu.goals([one, figures_of(precision="fp32"), figures_of(recorded=False)])
    assert "| m fp16 0.80 (0.67) |" in page and "| m fp16 512: 4.0 % |" in page
    single = figures_of(rows=1, varlen_ms=None, dense_ms=4.0)
    assert "| 1 x 512: no slower than dense | m fp16 0.80x |" in gpu.goals([single])


def test_thresholds_leave_the_wanted_shares_of_the_tokens() -> None:
    model = gpu.make_model("small", 64, SHAPES)
    batch = PackedRows.of(gpu.random_rows(8, 64, 30522), "cpu")
    gpu.calibrate(model, batch, gpu.KEPT)
    _, layouts = DeviceChain(model).reduced(batch)
    left = [int(layout.lengths.sum()) for layout in layouts]
    np.testing.assert_allclose(left, [0.5 * 512, 0.15 * 512], atol=8)  # and first tokens
    assert len(set(layouts[0].lengths.tolist())) > 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_one_line() -> None:
    result = CliRunner().invoke(gpu.main, [])
    assert result.exit_code == 1
    assert result.output == "error: no GPU that PyTorch can use: run where there is one\n"


def test_an_unknown_precision_is_one_line() -> None:
    result = CliRunner().invoke(gpu.main, ["--precisions", "fp8"])
    assert result.exit_code == 1
    assert result.output == "error: precision 'fp8': expected fp32, fp16, bf16\n"
