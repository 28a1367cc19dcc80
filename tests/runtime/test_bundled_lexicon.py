"""Another lexicon in a bundle: in one step, verified, and everything else as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import CheckpointMaker, Command
from lexicons_in_tests import lexicon_bundle

from trbert_deploy import load
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import LEXICON, WEIGHTS
from trbert_deploy.errors import BundleError, ConfigError, StorageError
from trbert_deploy.lexicon.entries import Entry, write_entries
from trbert_deploy.runtime import bundled_lexicon
from trbert_deploy.runtime.bundled_lexicon import set_lexicon

ENTRIES = [Entry("the film", "X"), Entry("sailor", "Y")]


@pytest.fixture(scope="module")
def made(make_checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("made") / "bundle"
    return lexicon_bundle(make_checkpoint, place, ("O", "B-X", "B-Y"))


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    place = Path(shutil.copytree(made, tmp_path / "bundle"))
    (place / "engines" / "some").mkdir(parents=True)
    (place / "engines" / "some" / "dense.engine").write_bytes(b"engine")
    return place


def test_the_new_one_is_there_and_all_else_as_it_was(bundle: Path) -> None:
    before = Bundle.open(bundle).manifest
    assert Bundle.open(bundle).lexicon() == []
    set_lexicon(bundle, ENTRIES)
    opened = Bundle.open(bundle)  # verifies
    assert opened.lexicon() == ENTRIES
    assert {**opened.manifest.files, LEXICON: ""} == {**before.files, LEXICON: ""}
    assert opened.manifest.graphs == before.graphs and opened.manifest.parity == before.parity
    assert (bundle / "engines" / "some" / "dense.engine").read_bytes() == b"engine"
    set_lexicon(bundle, ENTRIES[:1])
    assert Bundle.open(bundle).lexicon() == ENTRIES[:1]
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["bundle"]


def test_who_has_it_open_goes_on(bundle: Path) -> None:
    set_lexicon(bundle, ENTRIES)
    texts = ["the film of a sailor"]
    old = load(bundle, threads=1)
    before = old(texts)
    set_lexicon(bundle, [Entry("of", "X")])
    assert old(texts) == before
    new = load(bundle, threads=1)
    assert new.tokenize(texts)[0].protected.tolist() != old.tokenize(texts)[0].protected.tolist()


def test_a_bundle_that_takes_none_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="takes no lexicon"):
        set_lexicon(tiny_bundle, ENTRIES)
    with pytest.raises(StorageError):
        set_lexicon(tmp_path / "nowhere", ENTRIES)


def test_unknown_tags_leave_it_as_it_was(bundle: Path) -> None:
    set_lexicon(bundle, ENTRIES)
    with pytest.raises(ConfigError, match=r"lex.tsv has tags .*: Z \(it knows X, Y\)"):
        set_lexicon(bundle, [Entry("film", "Z")], "lex.tsv")
    assert Bundle.open(bundle).lexicon() == ENTRIES


def test_a_bundle_that_is_replaced_meanwhile_is_not_mixed(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = bundled_lexicon._link

    def replacing(source: Path, target: Path) -> Path:
        if Path(source).name == WEIGHTS:
            Path(source).unlink()
            Path(source).write_bytes(b"another export's")
        return Path(link(source, target))

    monkeypatch.setattr(bundled_lexicon, "_link", replacing)
    with pytest.raises(BundleError, match="was replaced since the bundle was opened"):
        set_lexicon(bundle, ENTRIES)
    assert not (bundle / LEXICON).exists()


def test_a_damaged_one_is_told(bundle: Path) -> None:
    set_lexicon(bundle, ENTRIES)
    (bundle / LEXICON).write_text("the film\n")
    with pytest.raises(BundleError, match=r"lexicon\.tsv was altered"):
        load(bundle, threads=1)
    with pytest.raises(BundleError, match="line 1 has no tag"):
        Bundle.open(bundle, verify=False).lexicon()


def test_commands_take_another_one_for_once(
    bundle: Path, tmp_path: Path, command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    set_lexicon(bundle, ENTRIES)
    write_entries(tmp_path / "other.tsv", [Entry("of", "X")])
    text = "the film of a sailor"
    given = ["predict", bundle, "--text", text, "--kept", "--threads", "1"]
    assert command(*given) == 0
    own = json.loads(capfd.readouterr().out)
    assert command(*given, "--lexicon", tmp_path / "other.tsv") == 0
    other = json.loads(capfd.readouterr().out)
    asked = load(bundle, threads=1).with_lexicon_file(tmp_path / "other.tsv")
    (expected,) = asked([text], return_kept=True)
    kept = [[*cut.positions] for cut in expected.kept]
    assert [cut["positions"] for cut in other["kept"]] == kept
    assert [cut["positions"] for cut in own["kept"]] != kept
    assert Bundle.open(bundle).lexicon() == ENTRIES


def test_a_lexicon_for_once_is_refused_in_one_line(
    bundle: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    command: Command,
    capfd: pytest.CaptureFixture[str],
) -> None:
    write_entries(tmp_path / "other.tsv", [Entry("of", "Z")])
    path = tmp_path / "other.tsv"
    predict = ["predict", bundle, "--text", "of", "--lexicon"]
    for given, message in (
        ([*predict, path], "other.tsv has tags that the model does not know: Z (it knows X, Y)"),
        (["predict", tiny_bundle, "--text", "of", "--lexicon", path], "takes no lexicon, and"),
        (["evaluate", tiny_bundle, "--data", "-", "--lexicon", path], "takes no lexicon, and"),
        ([*predict, tmp_path / "none.tsv"], "none.tsv"),
        ([*predict, path, "--engine", "ray"], "--lexicon is for --engine local"),
    ):
        assert command(*given) != 0
        assert message in capfd.readouterr().err
