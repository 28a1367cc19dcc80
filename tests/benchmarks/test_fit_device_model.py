"""The fit of the reckoning for GPUs: it reads the document, and finds what made the times."""

from __future__ import annotations

import fit_device_model
import pytest
from click.testing import CliRunner

from trbert_deploy.bench.device_model import DEVICES, FITTED, seconds

LINE = "| {name} | {shape} | fp16 | one recording | {dense} | | {reduced} | 3x | 2x | 0.7 | | 1 % |"


def test_the_document_is_read() -> None:
    times = fit_device_model.read_times(fit_device_model.DOCUMENT.read_text(encoding="utf-8"))
    assert len(times) == 48
    assert all(0.5 < fit_device_model.ratio(time, FITTED) < 1.2 for time in times)


def test_times_that_shares_made_are_met_again(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [("MiniLM", "1 x 512"), ("MiniLM", "32 x 2048"), ("BERT-base", "32 x 512")]
    lines = [LINE.format(name=name, shape=shape, dense=1, reduced=1) for name, shape in shapes]
    times = fit_device_model.read_times("\n".join(lines))
    assert [time.name.split()[-1] for time in times] == ["dense", "reduced"] * 3
    made = [
        fit_device_model.Time(
            time.name, True, 1e3 * seconds(DEVICES["h100"], time.work), time.work, None
        )
        for time in times
    ]
    monkeypatch.setattr(fit_device_model, "STARTS", 2)
    shares = fit_device_model.fit(made)
    assert [fit_device_model.ratio(time, shares) for time in made] == pytest.approx(
        [1] * 6, rel=0.1
    )


def test_a_document_without_times_is_told(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path_factory.mktemp("docs") / "performance-gpu.md"
    empty.write_text("Nothing has run on a device yet.\n")
    monkeypatch.setattr(fit_device_model, "DOCUMENT", empty)
    result = CliRunner().invoke(fit_device_model.main)
    assert result.exit_code == 1 and "run make bench-gpu" in result.output
