"""A bundle that is not exactly what was exported is refused, with the reason."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import trbert_deploy
from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import (
    DIGEST,
    MANIFEST,
    WEIGHTS,
    Manifest,
    _digest,
    require_length,
    write_manifest,
)
from trbert_deploy.bundle.samples import read_samples, write_samples
from trbert_deploy.errors import BundleError, ConfigError, LengthError, StorageError
from trbert_deploy.files import sha256

Change = Callable[[dict[str, Any]], None]


def rewrite(bundle: Path, change: Change) -> None:
    """Change the manifest and sign it again, as another program could have written it."""
    path = bundle / MANIFEST
    data = json.loads(path.read_text())
    del data[DIGEST]
    change(data)
    path.write_text(json.dumps({**data, DIGEST: _digest(data)}))


@pytest.fixture(scope="module")
def scratch(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that every example damages and restores."""
    return Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("damaged") / "bundle"))


@pytest.fixture(scope="module")
def opened(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def test_opens_what_was_exported(opened: Bundle) -> None:
    manifest = opened.manifest
    assert [graph.name for graph in manifest.graphs] == [
        "segment_0", "segment_1", "segment_2", "dense",
    ]  # fmt: skip
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest
    assert len(opened.samples()) == 6
    assert opened.graph_path("dense").is_file()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_goes_unnoticed(data: st.DataObject, scratch: Path, opened: Bundle) -> None:
    path = data.draw(st.sampled_from(sorted(scratch.iterdir())))
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    kind = data.draw(st.sampled_from(["flip", "truncate", "insert", "delete"]))
    if kind == "flip":
        flipped = content[place] ^ data.draw(st.integers(1, 255))
        damaged = content[:place] + bytes([flipped]) + content[place + 1 :]
    elif kind == "truncate":
        damaged = content[:place]
    elif kind == "insert":
        damaged = content[:place] + bytes([data.draw(st.integers(0, 255))]) + content[place:]
    else:
        damaged = b""
    path.unlink()
    try:
        if kind != "delete":
            path.write_bytes(damaged)
        try:
            manifest = Bundle.open(scratch).manifest
        except BundleError as problem:
            assert "\n" not in str(problem)
        else:  # white space in the manifest says nothing
            assert path.name == MANIFEST and manifest == opened.manifest
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("name", ["segment_1.onnx", "weights.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(own_bundle: Path, name: str) -> None:
    (own_bundle / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        trbert_deploy.load(own_bundle)


def test_a_truncated_file_is_named(own_bundle: Path) -> None:
    weights = own_bundle / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"weights\.safetensors was altered or truncated"):
        trbert_deploy.load(own_bundle)


def test_a_threshold_changed_by_hand_is_refused(own_bundle: Path) -> None:
    path = own_bundle / MANIFEST
    path.write_text(path.read_text().replace('"value": 0.5', '"value": 0.9'))
    with pytest.raises(BundleError, match=r"manifest\.json was altered"):
        trbert_deploy.load(own_bundle)


def set_version(version: object) -> Change:
    return lambda data: data.update(format_version=version)


def rule(**values: object) -> Change:
    return lambda data: data["reduction"]["cuts"][0]["rule"].update(values)


def graph(place: int, **values: object) -> Change:
    return lambda data: data["graphs"][place].update(values)


def inputs(place: int, *names: str) -> Change:
    return graph(place, inputs=[{"name": n, "dtype": "int64", "shape": ["B", "S"]} for n in names])


def outputs(place: int, *names: str) -> Change:
    return graph(place, outputs=[{"name": n, "dtype": "float32", "shape": ["B"]} for n in names])


def nested(levels: int) -> Change:
    return lambda data: data.update(training=json.loads('{"a":' * levels + "1" + "}" * levels))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_version(5), "format version 5: this release reads 2 to 4; upgrade trbert-deploy"),
        (set_version(1), "format version 1: .* export the checkpoint again"),
        (set_version("2"), "format version '2': .* export the checkpoint again"),
        (set_version([2]), r"format version \[2\]: "),
        (set_version(True), "format version True: "),
        (set_version("two\nlines"), r"format version 'two\\nlines': "),
        (lambda data: data.pop("format_version"), "format version None"),
        (lambda data: data.pop("graphs"), "manifest is damaged .*graphs"),
        (lambda data: data.update(max_length=1e999), "manifest is damaged"),
        (lambda data: data["reduction"].update(version=9), "manifest is damaged .*version 9"),
        (lambda data: data["reduction"]["cuts"][1].update(position=9), "cut 9 is out of range"),
        (lambda data: data["encoder"].pop("num_heads"), "manifest is damaged"),
        (
            lambda data: data["graphs"].pop(1),
            "segment_0, segment_2, dense: expected segment_0, segment_1, segment_2, dense",
        ),
        (graph(0, inputs=[{"name": "a"}]), r"inputs has the fields \['name'\]"),
        (graph(0, outputs=[{"name": 3, "dtype": "", "shape": []}]), "name of outputs is 3"),
        (lambda data: data.update(max_length=0), "max_length is 0: expected 1 to 64"),
        (lambda data: data.update(max_length=65), "max_length is 65: expected 1 to 64"),
        (lambda data: data.update(max_length="64"), "max_length of manifest is '64': expected int"),
        (lambda data: data["encoder"].update(labels="good"), "labels of encoder is 'good'"),
        (lambda data: data["encoder"].update(labels=["a", "a"]), "labels are a, a: expected each"),
        (lambda data: data["encoder"].update(num_layers=True), "num_layers of encoder is True"),
        (lambda data: data["reduction"].update(cuts="a\nb"), r"has the cuts 'a\\nb': expected a"),
        (rule(round_to=4.0), "round_to of selection rule is 4.0: expected int"),
        (rule(kind="budget", value=1e300), "budget is 1e.300: expected a whole number"),
        (graph(0, name=["a"]), "name of graph is .* expected str"),
        (
            graph(0, variants=["masked", "quick"]),
            "segment_0 has the variants masked, quick: expected masked and others of "
            "calibrated, calibrated_masked, dequant",
        ),
        (graph(0, variants=["fused"]), "segment_0 has the variants fused: expected masked"),
        (graph(0, variants=["masked"] * 2), "segment_0 has the variants masked, masked"),
        (inputs(0, "hidden", "attention_mask"), "segment_0 takes hidden, .*: expected input_ids"),
        (inputs(0, "input_ids", "hidden"), "segment_0 takes input_ids, hidden: expected input_ids"),
        (inputs(0, "input_ids", "words"), "segment_0 takes input_ids, words: expected input_ids"),
        (inputs(1, "input_ids"), "segment_1 takes input_ids: expected hidden"),
        (inputs(1, "hidden", "hidden"), "segment_1 takes hidden, hidden: expected hidden"),
        (outputs(0, "hidden_out", "logits"), "segment_0 gives hidden_out, logits: .* keep_logit"),
        (outputs(0, "keep_logit"), "segment_0 gives keep_logit: expected hidden_out and"),
        (
            outputs(2, "hidden_out", "keep_logit"),
            "segment_2 gives .*: expected hidden_out and what",
        ),
        (outputs(2, "hidden_out"), "segment_2 gives hidden_out: expected hidden_out and what"),
        (outputs(3, "hidden_out", "logits", "logits"), "dense gives hidden_out, logits, logits"),
        (nested(40), "nests more than 32 levels"),
        (nested(900), "nests more than 32 levels"),
        (lambda data: data["files"].pop("tokenizer.json"), r"no digest of tokenizer\.json"),
    ],
)
def test_a_manifest_that_cannot_be_right_is_refused(
    own_bundle: Path, change: Change, message: str
) -> None:
    rewrite(own_bundle, change)
    with pytest.raises(BundleError, match=message):
        Bundle.open(own_bundle)


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/hostname", "a/b", "a\\b", "..", ".", "", "a\0b", "two\nlines", "x" * 300],
)
def test_files_outside_the_bundle_are_refused(own_bundle: Path, name: str) -> None:
    (own_bundle.parent / "secret").write_text("x")
    rewrite(own_bundle, lambda data: data["files"].update({name: "0" * 64}))
    with pytest.raises(
        BundleError, match=r"expected a plain name|a name in files of manifest is .* expected str"
    ) as caught:
        Bundle.open(own_bundle)
    assert len(str(caught.value).splitlines()) == 1


def test_a_graph_outside_the_bundle_is_refused(own_bundle: Path) -> None:
    rewrite(own_bundle, lambda data: data["graphs"][0].update(name="../segment_0"))
    with pytest.raises(BundleError, match=r"expected segment_0"):
        Bundle.open(own_bundle)


def test_other_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="does not exist"):
        Bundle.open(tmp_path / "no")
    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json"):
        Bundle.open(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="is a file"):
        Bundle.open(tmp_path / "file")


def test_without_samples_there_are_none(own_bundle: Path) -> None:
    rewrite(own_bundle, lambda data: data["files"].pop("samples.jsonl"))
    assert Bundle.open(own_bundle).samples() == []


@pytest.mark.parametrize(
    "line",
    [
        '{"texts": "a"}',
        '{"text": 3}',
        '{"text": "a", "text_pair": 3}',
        '{"text_pair": "a"}',
        "[]",
        "3" * 5000,
        "[" * 10**5,
    ],
)
def test_samples_are_texts(own_bundle: Path, line: str) -> None:
    samples = own_bundle / "samples.jsonl"
    samples.write_text(f"{samples.read_text()}{line}\n")
    rewrite(own_bundle, lambda data: data["files"].update({samples.name: sha256(samples)}))
    with pytest.raises(BundleError, match=r"samples\.jsonl"):
        Bundle.open(own_bundle).samples()


def test_samples_may_be_pairs(tmp_path: Path) -> None:
    texts = [("who returns", "the sailor"), "a film", ["what", "where"]]
    write_samples(tmp_path / "samples.jsonl", texts)
    found = read_samples(tmp_path / "samples.jsonl", BundleError)
    assert found == [texts[0], texts[1], ("what", "where")]
    (tmp_path / "samples.jsonl").write_text('{"text": "as earlier releases wrote it"}\n')
    assert read_samples(tmp_path / "samples.jsonl", BundleError) == ["as earlier releases wrote it"]


def content_of(bundle: Path) -> dict[str, Any]:
    content = json.loads((bundle / MANIFEST).read_text())
    del content[DIGEST]
    return content


def read(content: dict[str, Any]) -> Manifest:
    return Manifest.from_json({**content, DIGEST: _digest(content)})


def test_everything_is_written_and_read_again(tiny_bundle: Path, tmp_path: Path) -> None:
    content = {**content_of(tiny_bundle), "max_length": 1}
    content |= {"training": {"seed": 3}, "parity": {"rows": [1]}, "made_by": {"torch": "2"}}
    manifest = read(content)
    assert (manifest.max_length, manifest.training, manifest.parity, manifest.made_by) == (
        1, {"seed": 3}, {"rows": [1]}, {"torch": "2"},
    )  # fmt: skip
    write_manifest(tmp_path, manifest)
    written = json.loads((tmp_path / MANIFEST).read_text())
    assert Manifest.from_json(written) == manifest
    assert {key: value for key, value in written.items() if key != DIGEST} == content
    for key in ("training", "parity", "made_by"):  # an older release may not have known them
        del content[key]
    assert read(content) == replace(manifest, training={}, parity={}, made_by={})


def test_graphs_follow_from_the_cuts(tiny_bundle: Path) -> None:
    content = content_of(tiny_bundle)
    first, _, last, dense = content["graphs"]
    dense.pop("variants")
    without = {**content, "reduction": {"version": 1, "cuts": []}, "graphs": [dense]}
    assert [graph.variants for graph in read(without).graphs] == [("masked",)]
    one = {"version": 1, "cuts": content["reduction"]["cuts"][:1]}
    graphs = [first, {**last, "name": "segment_1"}, dense]
    manifest = read({**content, "reduction": one, "graphs": graphs})
    assert [graph.name for graph in manifest.graphs] == ["segment_0", "segment_1", "dense"]
    assert manifest.graph("segment_1").answers == ("logits",)
    assert manifest.graph("segment_0").answers == ("hidden_out", "keep_logit")
    with pytest.raises(BundleError, match="graphs are dense: expected segment_0, segment_1, dense"):
        read({**content, "reduction": one, "graphs": [dense]})


@pytest.mark.parametrize(("name", "fits"), [("X", True), ("x" * 200, True), ("x" * 201, False)])
def test_names_of_files_are_plain(tiny_bundle: Path, name: str, fits: bool) -> None:
    content = content_of(tiny_bundle)
    content["files"][name] = "0" * 64
    if fits:
        assert name in read(content).files
    else:
        with pytest.raises(BundleError, match=r"a file is called 'xxx.*: expected a plain name"):
            read(content)


def test_digests_that_are_missing_are_named_together(own_bundle: Path) -> None:
    def drop(data: dict[str, Any]) -> None:
        for name in ("tokenizer.json", "dense.onnx"):
            del data["files"][name]

    rewrite(own_bundle, drop)
    with pytest.raises(BundleError, match=r"no digest of dense\.onnx, tokenizer\.json$"):
        Bundle.open(own_bundle)


def test_files_may_go_unverified_and_nothing_else(own_bundle: Path) -> None:
    (own_bundle / "weights.safetensors").write_bytes(b"other")
    unverified = Bundle.open(own_bundle, verify=False)
    with pytest.raises(BundleError, match=r"weights\.safetensors was altered"):
        Bundle.of(own_bundle, unverified.manifest)
    (own_bundle / "weights.safetensors").unlink()
    with pytest.raises(BundleError, match=r"weights\.safetensors is missing"):
        Bundle.open(own_bundle, verify=False)


def test_what_is_read_is_what_was_opened(own_bundle: Path) -> None:
    bundle, name = Bundle.open(own_bundle), "tokenizer.json"
    file = own_bundle / name
    content = file.read_bytes()

    def read_it() -> None:
        with bundle.reading(name) as path:
            assert path == file

    read_it()
    os.utime(file, (1, 1))  # touched, as copying does
    read_it()
    file.write_bytes(content + b" ")
    with pytest.raises(BundleError, match=r"json was replaced since the bundle was opened: load"):
        read_it()
    file.unlink()
    with pytest.raises(BundleError, match="was replaced since"):
        read_it()
    file.write_bytes(content)
    read_it()


def test_an_unchanged_file_is_not_hashed_again(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(own_bundle)
    monkeypatch.setattr("hashlib.file_digest", lambda *arguments: pytest.fail("hashed again"))
    with bundle.reading("tokenizer.json", "weights.safetensors"):
        pass


def test_variants_and_their_files(opened: Bundle) -> None:
    for variant, suffix in (("masked", ""), ("unmasked", ".unmasked"), ("fused", ".fused")):
        assert opened.has_variant(variant)
        opened.require_variant(variant)
        assert opened.manifest.graph("dense").file_of(variant) == f"dense{suffix}.onnx"
    for variant in ("int8", "dequantized"):
        assert not opened.has_variant(variant)
        with pytest.raises(
            ConfigError, match="has no graphs with 8-bit weights: export it with --"
        ):
            opened.require_variant(variant)
    with pytest.raises(ConfigError, match="has no other variant of its graphs: export the check"):
        opened.require_variant("other")


def test_a_variant_is_there_if_every_graph_has_it(opened: Bundle) -> None:
    *others, dense = opened.manifest.graphs
    graphs = (*others, replace(dense, variants=("masked",)))
    partly = replace(opened, manifest=replace(opened.manifest, graphs=graphs))
    assert partly.has_variant("masked") and not partly.has_variant("fused")


def test_longer_rows_than_the_bundle_takes() -> None:
    require_length(64, 64)
    expected = "length 65 is more than the bundle takes: expected at most 64; train with --max-le"
    with pytest.raises(LengthError, match=expected):
        require_length(65, 64)


def test_a_file_that_may_not_be_read_is_named(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def refusing(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == WEIGHTS:  # whoever runs the tests may be allowed everything
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(BundleError, match=f"{WEIGHTS} cannot be read: permission denied"):
        Bundle.open(own_bundle)
