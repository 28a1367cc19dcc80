"""``trbert-deploy align``: from a file of pairs to links, pictures, and one line for each error."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
from conftest import Command
from PIL import Image

from trbert_deploy import plain_progress
from trbert_deploy.alignment import aligner as aligner_module
from trbert_deploy.alignment.aligner import Aligner
from trbert_deploy.alignment.methods import METHODS
from trbert_deploy.cli import main
from trbert_deploy.errors import ConfigError, DataError, LengthError
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend

PAIRS = [
    ("the film tells of a sailor", "a sailor tells of the film"),
    ("the house of his mother", "while nobody remembers him, the house"),
    ("war", "the war that finds him"),
]


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("exported") / "bundle"
    export_bundle(tiny_checkpoint, target, states_after=[0, 2])
    return target


@pytest.fixture
def align(bundle: Path, command: Command) -> Command:
    """Runs the command in this process; returns its exit code."""
    return lambda *arguments, path=bundle: command("align", path, *arguments)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [{"text": text, "text_pair": other} for text, other in PAIRS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parsed(output: str) -> list[dict]:
    return [json.loads(line) for line in output.splitlines()]


def test_states_on_a_device_are_looked_at(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of a GPU are, where they stay until somebody asks for them."""
    expected = Aligner(bundle)(PAIRS)
    monkeypatch.setattr(
        aligner_module,
        "open_backend",
        lambda name, opened, options: OnnxRuntimeBackend(opened, options, states_on="cpu"),
    )
    for one, other in zip(expected, Aligner(bundle)(PAIRS), strict=True):
        np.testing.assert_allclose(other.similarity, one.similarity, atol=1e-5)


def test_a_file_of_pairs_becomes_lines_of_links(
    align: Command, pairs: Path, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert align("--input", pairs, "--batch-size", "2", "--layer", "0") == 0
    rows = parsed(capfd.readouterr().out)
    assert len(rows) == 3
    for row, (text, other) in zip(rows, PAIRS, strict=True):
        for link in row["links"]:
            for side, whole in (("source", text), ("target", other)):
                place = link[side]
                assert whole[place["start"] : place["end"]] == place["text"]
                assert whole.split()[place["index"]] == place["text"]
            assert -1.0001 <= link["similarity"] <= 1.0001
    # Behind the embeddings a word is most like itself, wherever it stands.
    same = [link["source"]["text"] == link["target"]["text"] for link in rows[0]["links"]]
    assert sum(same) >= 4 > len(same) - sum(same)
    expected = [alignment.to_json() for alignment in Aligner(bundle, layer=0)(PAIRS)]
    for row, found in zip(rows, expected, strict=True):
        for one, two in zip(row["links"], found["links"], strict=True):
            assert (one["source"], one["target"]) == (two["source"], two["target"])
            assert one["similarity"] == pytest.approx(two["similarity"], abs=1e-5)


def test_methods_and_levels_are_those_of_the_library(
    align: Command, pairs: Path, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for method in METHODS:
        for level in ("words", "characters"):
            assert align("--input", pairs, "--method", method, "--level", level) == 0
            rows = parsed(capfd.readouterr().out)
            for row, found in zip(
                rows, Aligner(bundle, level=level, method=method)(PAIRS), strict=True
            ):
                assert len(row["links"]) == found.links.sum() > 0
                expected = METHODS[method](found.similarity)
                assert np.array_equal(found.links, expected)
    matched = Aligner(bundle, method="matching")(PAIRS)[1]
    rows_and_columns = scipy.optimize.linear_sum_assignment(-matched.similarity)
    assert matched.similarity[matched.links].sum() == pytest.approx(
        matched.similarity[rows_and_columns].sum()
    )


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_backends_align_alike(
    align: Command, pairs: Path, bundle: Path, backend: str, capfd: pytest.CaptureFixture[str]
) -> None:
    # OpenVINO may compute in bfloat16.
    tolerance = 0.02 if backend == "openvino" else 1e-5
    assert align("--input", pairs, "--backend", backend, "--method", "matching") == 0
    assert len(parsed(capfd.readouterr().out)) == 3
    expected = Aligner(bundle)(PAIRS)
    for one, other in zip(Aligner(bundle, backend=backend)(PAIRS), expected, strict=True):
        np.testing.assert_allclose(one.similarity, other.similarity, atol=tolerance)


def test_a_text_is_aligned_alike_whatever_is_beside_it(bundle: Path) -> None:
    aligner = Aligner(bundle)
    for together, pair in zip(aligner(PAIRS), PAIRS, strict=True):
        (alone,) = aligner([pair])
        np.testing.assert_allclose(together.similarity, alone.similarity, atol=1e-5)


def test_a_text_and_itself_are_aligned_place_by_place(bundle: Path) -> None:
    (alignment,) = Aligner(bundle, level="characters", method="mutual")([(PAIRS[0][1],) * 2])
    assert np.array_equal(alignment.links, np.eye(len(alignment.source), dtype=np.bool_))
    assert np.diag(alignment.similarity) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.filterwarnings("ignore::trbert_deploy.runtime.tokenizing.TruncationWarning")
def test_every_pair_is_drawn_in_any_script(
    align: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    texts = ["$a_1$ b^2 \x07", "שלום العالم 中文 😀", "x " * 200, "the " + "longest" * 20]
    source, folder = tmp_path / "pairs.jsonl", tmp_path / "new" / "plots"
    rows = [{"text": text, "text_pair": f"the film {text}"} for text in texts]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "links.jsonl"
    arguments = ("--input", source, "--plots", folder, "--output", output)
    assert align(*arguments, "--level", "words") == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        f"pair_{number:06}.png" for number in (1, 2, 3, 4)
    ]
    for path in folder.iterdir():
        with Image.open(path) as image:
            assert max(image.size) < 2500
    assert len(parsed(output.read_text())) == 4
    assert "Glyph" not in capfd.readouterr().err


@pytest.mark.filterwarnings("ignore::trbert_deploy.runtime.tokenizing.TruncationWarning")
def test_columns_standard_input_and_texts_that_are_cut(
    align: Command, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = json.dumps({"en": "the film " * 60, "de": "a house"}).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(line)))
    assert align("--input", "-", "--text-column", "en", "--pair-column", "de") == 0
    shown = capfd.readouterr()
    assert len(parsed(shown.out)) == 1
    assert "1 of 2 texts were cut to 64 tokens" in shown.err


def test_progress_is_told(
    align: Command,
    pairs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(plain_progress, "FIRST_AFTER", 0.0)
    assert align("--input", pairs) == 0
    assert "align  100 %  (3 of 3)  in " in capfd.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a film"}', "pairs.jsonl, line 2 has one text: expected two, such as text and"),
        ('{"text": "a film", "text_pair": " "}', 'line 2: the field "text_pair" is empty'),
        ('{"text": "", "text_pair": "a film"}', 'line 2: the field "text" is empty'),
        ('{"text": "a", "text_pair": 3}', 'line 2: the field "text_pair" is of type int'),
        ('{"text_pair": "a film"}', "line 2 has the columns"),
        ('{"text": "a film", "text_pair": "\\u200b"}', "line 2, the second text has no token"),
        ('{"text": "a film",', "line 2"),
    ],
)
def test_what_is_no_pair_is_refused_by_its_line(
    align: Command, pairs: Path, line: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    first = pairs.read_text().splitlines()[0]
    pairs.write_text(f"{first}\n{line}\n")
    output = pairs.with_name("out.jsonl")
    assert align("--input", pairs, "--output", output) == 1
    error = capfd.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not output.exists()


def test_named_columns_that_are_missing_are_named(
    align: Command, pairs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert align("--input", pairs, "--pair-column", "german") == 1
    assert 'line 1 has no column "german": it has "text", "text_pair"' in capfd.readouterr().err
    pairs.write_text("")
    assert align("--input", pairs) == 1
    assert "is empty" in capfd.readouterr().err


def test_a_bundle_without_states_says_how_they_come(
    align: Command, pairs: Path, tiny_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for arguments, path, message in (
        ((), tiny_bundle, "has no graph of states (there are none): export the checkpoint with "
         "--states-after K"),
        (("--layer", "1"), None, "after layer 1 (there are 0, 2): export the checkpoint with "
         "--states-after 1"),
        (("--layer", "5"), None, "is 5: expected a whole number from 0 to 4"),
    ):  # fmt: skip
        assert align("--input", pairs, *arguments, **({"path": path} if path else {})) == 1
        error = capfd.readouterr().err
        assert message in error and error.count("\n") == 1


def test_wrong_options_are_named(
    align: Command, pairs: Path, bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for arguments in (("--level", "lines"), ("--method", "best"), ("--backend", "tensorrt")):
        assert align("--input", pairs, *arguments) == 2
        assert arguments[1] in capfd.readouterr().err
    for name in ("level", "method", "backend"):
        with pytest.raises(ConfigError, match=f"unknown {name}.* 'best': expected one of"):
            Aligner(bundle, **{name: "best"})
    assert align("--input", tmp_path / "none.jsonl") == 1
    assert align("--input", pairs, "--no-truncate") == 0
    capfd.readouterr()
    with pytest.raises(LengthError, match="pair 1, the second text has"):
        Aligner(bundle, truncate=False)([("a film", "the " * 90)])
    with pytest.raises(DataError, match="pair 1, the first text is empty"):
        Aligner(bundle)([(" ", "a film")])


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("scipy", ("--method", "matching"), "align"),
        ("matplotlib", ("--plots", "plots"), "plots"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    align: Command,
    pairs: Path,
    module: str,
    arguments: tuple[str, str],
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(pairs.parent)
    for name in [each for each in sys.modules if each.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "trbert_deploy.reports.plots.alignments", raising=False)
    monkeypatch.delitem(sys.modules, "trbert_deploy.reports.plots.figure", raising=False)

    class Missing:
        def find_spec(self, name: str, *rest: object) -> None:
            if name.partition(".")[0] == module:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    assert align("--input", pairs, *arguments) == 1
    error = capfd.readouterr().err
    assert f"align {arguments[0]}" in error and f"trbert-deploy[{extra}]" in error


def test_a_bundle_made_by_the_command_line(
    align: Command,
    tiny_checkpoint: Path,
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / "bundle"
    command = ["trbert-deploy", "export", str(tiny_checkpoint), "--output", str(target)]
    monkeypatch.setattr(sys, "argv", [*command, "--states-after", "7"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert "after is 7: expected a whole number from 0 to 4" in capfd.readouterr().err
    monkeypatch.setattr(sys, "argv", [*command, "--states-after", "3", "--states-after", "1"])
    main()
    assert "states_1" in capfd.readouterr().out
    assert align("--input", pairs, path=target) == 0
    assert Aligner(target).layer == 3
    capfd.readouterr()
    shutil.rmtree(target)
    assert align("--input", pairs, path=target) == 1
    assert "trbert-deploy export" in capfd.readouterr().err
