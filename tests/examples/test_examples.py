"""The examples run as their documentation says."""

from __future__ import annotations

import io
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import LABELS, make_texts
from hf_folders import classifier_folder, sentence_folder
from transformers import BertForMaskedLM, BertForQuestionAnswering, BertForTokenClassification

from trbert_deploy import load
from trbert_deploy.exporters.export import export_bundle

EXAMPLES = Path(__file__).parents[2] / "examples"
TEXTS = [" ".join(row["text"].split()[-10:]) for row in make_texts(6, seed=9)]
Run = Callable[..., tuple[list[list[str]], list[str]]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs an example: the columns of the lines on stdout, and the lines on stderr."""

    def run(name: str, *arguments: object) -> tuple[list[list[str]], list[str]]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        printed = capsys.readouterr()
        return [line.split("\t") for line in printed.out.splitlines()], printed.err.splitlines()

    return run


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(TEXTS) + "\n")
    return path


def test_every_example_is_short_and_run_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 60
        assert f'"{path.name}"' in source


def test_reviews_are_classified(tiny_bundle: Path, texts: Path, run: Run) -> None:
    found, counts = run("classify_reviews.py", tiny_bundle, texts)
    answers = load(tiny_bundle)(TEXTS)
    expected = [[a.label, f"{a.score:.3f}", t] for a, t in zip(answers, TEXTS, strict=True)]
    assert found == expected
    labels = [label for label, _, _ in found]
    assert sorted(counts) == sorted(
        f"{label}: {labels.count(label)} of 6" for label in LABELS if label in labels
    )


def test_reviews_come_from_standard_input(
    tiny_bundle: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(TEXTS)))
    found, counts = run("classify_reviews.py", tiny_bundle, "-", "--unsure", 1.0)
    assert [label for label, _, _ in found] == ["unsure"] * 6
    assert counts == ["unsure: 6 of 6"]


@pytest.mark.parametrize("labels", [("LABEL_0",), ("no", "yes")])
def test_search_results_are_ranked(
    tmp_path: Path, tokenizer_dir: Path, texts: Path, run: Run, labels: tuple[str, ...]
) -> None:
    folder = classifier_folder(tmp_path / "folder", tokenizer_dir, labels)
    export_bundle(folder, tmp_path / "bundle")
    choice = ["--label", labels[1]] if labels[1:] else []
    found, _ = run(
        "rerank_search_results.py", tmp_path / "bundle", "a film", texts, "--top", 4, *choice
    )
    assert [place for place, _, _ in found] == ["1", "2", "3", "4"]
    scores = load(tmp_path / "bundle").predict([("a film", text) for text in TEXTS],
                                               label=choice[1] if choice else None)  # fmt: skip
    ranked = sorted(zip(-scores, TEXTS, strict=True))
    assert [passage for _, _, passage in found] == [text for _, text in ranked[:4]]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("classify_reviews.py", ["nothing.txt"]), ("rerank_search_results.py", ["a", "nothing.txt"])],
)
def test_mistakes_are_one_line(
    tiny_bundle: Path, run: Run, name: str, arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(name, tiny_bundle, *arguments)
    assert str(caught.value).startswith("error: ")
    assert len(str(caught.value).splitlines()) == 1


def test_documents_are_searched(tmp_path: Path, tokenizer_dir: Path, texts: Path, run: Run) -> None:
    folder = sentence_folder(tmp_path / "folder", tokenizer_dir)
    export_bundle(folder, tmp_path / "bundle")
    found, _ = run("search_documents.py", tmp_path / "bundle", texts, TEXTS[3], "--top", 2)
    assert len(found) == 2 and found[0] == ["1.000", TEXTS[3]]


def test_a_long_contract_is_tagged(tmp_path: Path, tokenizer_dir: Path, run: Run) -> None:
    labels = ("O", "B-PLACE", "I-PLACE")
    folder = tmp_path / "folder"
    classifier_folder(folder, tokenizer_dir, labels, BertForTokenClassification)
    export_bundle(folder, tmp_path / "bundle")
    text = "\n".join(TEXTS * 6)
    (tmp_path / "contract.txt").write_text(text)
    found, counts = run("tag_contract.py", tmp_path / "bundle", tmp_path / "contract.txt")
    (answer,) = load(tmp_path / "bundle")([text])
    assert answer.num_tokens > 128  # the model takes 64
    assert [row[:3] for row in found] == [
        [each.entity_group, str(each.start), str(each.end)] for each in answer.entities
    ]
    assert counts == [f"PLACE: {len(found)}"]


def test_questions_are_answered(tmp_path: Path, tokenizer_dir: Path, texts: Path, run: Run) -> None:
    folder = tmp_path / "folder"
    classifier_folder(folder, tokenizer_dir, ("LABEL_0", "LABEL_1"), BertForQuestionAnswering)
    export_bundle(folder, tmp_path / "bundle")
    found, _ = run("answer_questions.py", tmp_path / "bundle", texts, "who returns", "who is sold")
    assert [row[2] for row in found] == ["who returns", "who is sold"]
    assert all(row[1] in " ".join(texts.read_text().split()) for row in found)


def test_a_word_is_chosen(tmp_path: Path, tokenizer_dir: Path, run: Run) -> None:
    """On English texts, whose words the tokenizer of the tests knows."""
    classifier_folder(tmp_path / "folder", tokenizer_dir, ("LABEL_0",), BertForMaskedLM)
    export_bundle(tmp_path / "folder", tmp_path / "bundle")
    (tmp_path / "phrases.txt").write_text("the [MASK] returns\n\nthe house of [MASK]\n")
    arguments = ("choose_classifier_word.py", tmp_path / "bundle", tmp_path / "phrases.txt")
    found, _ = run(*arguments, "--among", "film", "city")
    assert [{best, others} for best, _, others, _ in found] == [{"film", "city"}] * 2
    first, second = found
    assert (first[3], second[3]) == (f"the {first[0]} returns", f"the house of {second[0]}")
    anything, _ = run(*arguments)
    answers = load(tmp_path / "bundle")(["the [MASK] returns", "the house of [MASK]"])
    assert [row[0] for row in anything] == [each.fills[0][0].token_str for each in answers]
    (tmp_path / "phrases.txt").write_text("the [MASK] of [MASK]\n")
    with pytest.raises(SystemExit, match=r"^error: a phrase has several"):
        run(*arguments)
