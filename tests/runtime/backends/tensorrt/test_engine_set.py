"""Engine sets are checked before they are loaded: no TensorRT is needed to refuse one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import WEIGHTS
from trbert_deploy.errors import ConfigError, EngineError, LengthError
from trbert_deploy.files import sha256
from trbert_deploy.runtime.backends.tensorrt.engine_set import (
    ENGINE_MANIFEST,
    EngineFile,
    EngineKey,
    EngineManifest,
    EngineSet,
    Profile,
    find_engine_set,
    write_manifest,
)

HERE = ("rtx", "1.7.1", "8.6")
PROFILES = (Profile(1, 16, 1, 2, 4), Profile(17, 64, 1, 2, 4))
LATER = (Profile(1, 16, 1, 2, 4, 9), Profile(17, 64, 1, 2, 4, 30))


def write_set(bundle: Bundle, precision: str = "fp16", capability: str = "8.6") -> EngineSet:
    """An engine set of stand-in files."""
    digests = bundle.manifest.files
    key = EngineKey(
        flavour="rtx",
        version="1.7.1",
        compute_capability=capability,
        precision=precision,
        profiles={graph.name: PROFILES for graph in bundle.manifest.graphs} | {"segment_1": LATER},
        weights_sha256=digests[WEIGHTS],
        graphs={graph.name: digests[graph.file] for graph in bundle.manifest.graphs},
    )
    path = bundle.engines_path / key.directory
    path.mkdir(parents=True)
    engines = []
    for name in key.graphs:
        file = path / f"{name}.engine"
        file.write_text(f"engine of {name}")
        engines.append(EngineFile(name, sha256(file), file.stat().st_size, 1024, 0.5))
    write_manifest(path, EngineManifest(key, tuple(engines), {"rows": 4}))
    return EngineSet.open(path, bundle)


@pytest.fixture
def bundle(own_bundle: Path) -> Bundle:
    return Bundle.open(own_bundle)


@pytest.fixture
def engine_set(bundle: Bundle) -> EngineSet:
    return write_set(bundle)


def edit(engine_set: EngineSet, change: Callable[[dict[str, Any]], object]) -> None:
    path = engine_set.path / ENGINE_MANIFEST
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_manifest_is_read_as_it_was_written(bundle: Bundle, engine_set: EngineSet) -> None:
    again = EngineSet.open(engine_set.path, bundle)
    assert again == engine_set
    assert again.read("dense") == b"engine of dense"
    again.verify()


def test_altered_engine(engine_set: EngineSet) -> None:
    (engine_set.path / "segment_1.engine").write_text("engine of another")
    with pytest.raises(EngineError, match=r"segment_1\.engine was altered .* build-engine again"):
        engine_set.verify()


def test_missing_engine(bundle: Bundle, engine_set: EngineSet) -> None:
    (engine_set.path / "dense.engine").unlink()
    with pytest.raises(EngineError, match=r"dense\.engine is missing"):
        EngineSet.open(engine_set.path, bundle)


def test_newer_manifest(bundle: Bundle, engine_set: EngineSet) -> None:
    edit(engine_set, lambda data: data.update(format_version=3))
    with pytest.raises(EngineError, match="version 3: this release reads 1 to 2; upgrade trbert-d"):
        EngineSet.open(engine_set.path, bundle)


def make_version_1(data: dict[str, Any]) -> None:
    """What was written when all engines had the same profiles, tuned for their longest rows."""
    profiles = data["key"]["profiles"]["dense"]
    for profile in profiles:
        del profile["opt_length"]
    data["key"]["profiles"] = profiles
    del data["key"]["plugin"]
    data["format_version"] = 1


def test_version_1_is_read(bundle: Bundle, engine_set: EngineSet) -> None:
    edit(engine_set, make_version_1)
    key = EngineSet.open(engine_set.path, bundle).manifest.key
    assert key.profiles == dict.fromkeys(key.graphs, PROFILES)
    assert not key.plugin
    edit(engine_set, lambda data: data["key"].update(profiles=[]))
    with pytest.raises(EngineError, match=r"engine manifest is damaged .* build-engine again"):
        EngineSet.open(engine_set.path, bundle)


def test_unknown_manifest_version(bundle: Bundle, engine_set: EngineSet) -> None:
    edit(engine_set, lambda data: data.pop("format_version"))
    with pytest.raises(EngineError, match=r"version None: .* build-engine again"):
        EngineSet.open(engine_set.path, bundle)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.pop("key"),
        lambda data: data["key"].pop("version"),
        lambda data: data["key"].update(surprise=1),
        lambda data: data["key"].update(profiles=[]),
        lambda data: data["key"].update(profiles={}),
        lambda data: data["key"].update(plugin="no"),
        lambda data: data["key"].pop("plugin"),
        lambda data: data["key"]["profiles"].pop("dense"),
        lambda data: data["key"]["profiles"].update(dense=[]),
        lambda data: data["key"]["profiles"]["dense"].pop(),
        lambda data: data["key"]["profiles"]["dense"][0].update(max_length=15),
        lambda data: data["key"]["profiles"]["dense"][0].update(opt_length=17),
        lambda data: data["key"]["profiles"]["dense"][0].pop("opt_length"),
        lambda data: [each[0].pop("opt_length") for each in data["key"]["profiles"].values()],
        lambda data: data["key"].update(graphs=3),
        lambda data: data["key"]["profiles"]["dense"][0].update(min_length=0),
        lambda data: data["key"]["profiles"]["dense"][0].update(min_length="1"),
        lambda data: data["key"]["profiles"]["dense"][0].update(min_batch=1.5),
        lambda data: data["key"].update(compute_capability=8.6),
        lambda data: data["key"]["graphs"].update(dense=None),
        lambda data: data["key"]["graphs"].update({"two\nlines": "0" * 64}),
        lambda data: data["engines"][0].update(name=["segment_0"]),
        lambda data: data["engines"][0].update(size_bytes="many"),
        lambda data: data["engines"][0].update(build_seconds=None),
        lambda data: data["engines"][0].update(name="../dense"),
        lambda data: data["engines"][0].update(name="/dense"),
        lambda data: data["engines"][0].update(name=".."),
        lambda data: data["engines"][0].update(name="..\\dense"),
        lambda data: data.update(engines=[{"name": "dense"}]),
        lambda data: data.update(parity=None),
        lambda data: data["key"].update(compute_capability=8.6),
        lambda data: data["key"].update(flavour="two\nlines"),
        lambda data: data["engines"][0].update(name=["dense"]),
        lambda data: data["engines"][0].update(scratch_bytes="1024"),
        lambda data: data["engines"][0].update(size_bytes=float("inf")),
        lambda data: data["key"]["profiles"]["dense"][0].update(max_batch=4.0),
    ],
)
def test_damaged_manifest(
    bundle: Bundle, engine_set: EngineSet, damage: Callable[[dict[str, Any]], object]
) -> None:
    edit(engine_set, damage)
    with pytest.raises(EngineError, match=r"engine manifest is damaged .* build-engine again"):
        EngineSet.open(engine_set.path, bundle)


def test_truncated_manifest(bundle: Bundle, engine_set: EngineSet) -> None:
    path = engine_set.path / ENGINE_MANIFEST
    path.write_text(path.read_text()[:40])
    with pytest.raises(EngineError, match="cannot be read as JSON"):
        EngineSet.open(engine_set.path, bundle)


def test_engines_of_other_weights(bundle: Bundle, engine_set: EngineSet) -> None:
    edit(engine_set, lambda data: data["key"].update(weights_sha256="0" * 64))
    with pytest.raises(EngineError, match="was built from other weights"):
        EngineSet.open(engine_set.path, bundle)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["key"]["graphs"].update(segment_0="0" * 64),
        lambda data: [data["key"][each].pop("segment_0") for each in ("graphs", "profiles")],
    ],
)
def test_engines_of_other_graphs(
    bundle: Bundle, engine_set: EngineSet, change: Callable[[dict[str, Any]], object]
) -> None:
    edit(engine_set, change)
    with pytest.raises(EngineError, match="was not built from the graph segment_0"):
        EngineSet.open(engine_set.path, bundle)


def test_graph_that_the_bundle_has_not(bundle: Bundle, engine_set: EngineSet) -> None:
    edit(engine_set, lambda data: data["key"]["graphs"].update(extra="0" * 64))
    edit(engine_set, lambda data: data["key"]["profiles"].update(extra=list(map(vars, PROFILES))))
    with pytest.raises(EngineError, match="was not built from the graph extra"):
        EngineSet.open(engine_set.path, bundle)


@pytest.mark.parametrize(
    ("change", "listed"),
    [
        (lambda engines: engines.append({**engines[0], "name": "extra"}), "dense, extra, segment"),
        (lambda engines: engines.append(dict(engines[0])), "dense, segment_0, segment_0"),
        (lambda engines: engines.pop(0), "dense, segment_1, segment_2: expected"),
    ],
)
def test_engines_listed_are_one_for_each_graph(
    bundle: Bundle,
    engine_set: EngineSet,
    change: Callable[[list[dict[str, Any]]], object],
    listed: str,
) -> None:
    (engine_set.path / "extra.engine").write_text("engine of segment_0")
    edit(engine_set, lambda data: change(data["engines"]))
    with pytest.raises(EngineError, match=f"lists the engines {listed}") as caught:
        EngineSet.open(engine_set.path, bundle)
    assert "\n" not in str(caught.value)


def test_engine_that_is_not_listed(bundle: Bundle, engine_set: EngineSet) -> None:
    (engine_set.path / "segment_3.engine").write_text("engine of somebody")
    (engine_set.path / "notes.txt").write_text("no engine")
    with pytest.raises(EngineError, match=r"segment_3\.engine is not listed in manifest\.json"):
        EngineSet.open(engine_set.path, bundle)


@pytest.mark.parametrize("target", ["../../outside", "../outside", "/{}/outside"])
def test_link_out_of_the_directory(bundle: Bundle, engine_set: EngineSet, target: str) -> None:
    engine = engine_set.path / "dense.engine"
    outside = engine_set.path / target.format(bundle.path)
    engine.rename(outside)
    engine.symlink_to(outside)
    with pytest.raises(EngineError, match=r"dense\.engine is a link out of its directory"):
        EngineSet.open(engine_set.path, bundle)


def test_what_is_read_is_what_was_found_sound(
    engine_set: EngineSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is replaced the moment after it was read changes nothing."""
    read_once = Path.read_bytes

    def replaced_behind(path: Path) -> bytes:
        data = read_once(path)
        path.write_bytes(b"engine of another")
        return data

    monkeypatch.setattr(Path, "read_bytes", replaced_behind)
    assert engine_set.read("dense") == b"engine of dense"
    with pytest.raises(EngineError, match=r"dense\.engine was altered"):
        engine_set.read("dense")


def test_engine_that_is_gone(engine_set: EngineSet) -> None:
    (engine_set.path / "dense.engine").unlink()
    with pytest.raises(EngineError, match=r"dense\.engine is missing"):
        engine_set.read("dense")


@pytest.mark.parametrize(
    ("here", "message"),
    [
        (("rtx", "1.8.0", "8.6"), r"built for TensorRT rtx 1\.7\.1, here is rtx 1\.8\.0"),
        (("tensorrt", "1.7.1", "8.6"), r"built for TensorRT rtx 1\.7\.1, here is tensorrt 1\.7\.1"),
        (("rtx", "1.7.1", "8.9"), r"built for compute capability 8\.6, here is 8\.9"),
    ],
)
def test_foreign_engines(engine_set: EngineSet, here: tuple[str, str, str], message: str) -> None:
    engine_set.require_fit(*HERE)
    with pytest.raises(EngineError, match=message):
        engine_set.require_fit(*here)


def test_half_precision_is_preferred(bundle: Bundle) -> None:
    for precision in ("fp32", "bf16"):
        write_set(bundle, precision)
    assert find_engine_set(bundle, *HERE).manifest.key.precision == "bf16"
    write_set(bundle, "fp16")
    assert find_engine_set(bundle, *HERE).manifest.key.precision == "fp16"


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_eight_bits_run_if_they_are_asked_for(bundle: Bundle, precision: str) -> None:
    write_set(bundle, precision)
    with pytest.raises(
        EngineError,
        match=rf"rtx-{precision}-sm86 is passed over \(runs with --precision {precision}",
    ):
        find_engine_set(bundle, *HERE)
    write_set(bundle, "fp32")
    assert find_engine_set(bundle, *HERE).manifest.key.precision == "fp32"
    assert find_engine_set(bundle, *HERE, precision).manifest.key.precision == precision


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32", "int8", "fp8"])
def test_a_precision_can_be_chosen(bundle: Bundle, precision: str) -> None:
    for each in ("fp16", "bf16", "fp32", "int8", "fp8"):
        write_set(bundle, each)
    found = find_engine_set(bundle, *HERE, precision)
    assert found.manifest.key.precision == precision


def make_stale(engine_set: EngineSet) -> None:
    edit(engine_set, lambda data: data["key"].update(weights_sha256="0" * 64))


def make_old(engine_set: EngineSet) -> None:
    edit(engine_set, lambda data: data["key"].update(version="1.6"))


def damage(engine_set: EngineSet) -> None:
    (engine_set.path / "segment_1.engine").write_text("engine")


def rename(engine_set: EngineSet) -> None:
    edit(engine_set, lambda data: data["key"].update(precision="fp32"))


UNFIT = [
    (make_stale, "was built from other weights"),
    (make_old, r"was built for TensorRT rtx 1\.6, here is rtx 1\.7\.1"),
    (damage, r"segment_1\.engine was altered or truncated"),
    (rename, "holds the engines of rtx-fp32-sm86"),
]


@pytest.mark.parametrize(("spoil", "reason"), UNFIT)
def test_an_unfit_set_hides_no_other(
    bundle: Bundle, spoil: Callable[[EngineSet], None], reason: str
) -> None:
    spoil(write_set(bundle, "fp16"))
    write_set(bundle, "bf16")
    with pytest.warns(UserWarning, match="engines rtx-bf16-sm86: rtx-fp16-sm86 .*" + reason):
        assert find_engine_set(bundle, *HERE).manifest.key.precision == "bf16"
    assert find_engine_set(bundle, *HERE, "bf16").manifest.key.precision == "bf16"  # no warning


@pytest.mark.parametrize(("spoil", "reason"), UNFIT)
def test_the_chosen_precision_alone_is_taken(
    bundle: Bundle, spoil: Callable[[EngineSet], None], reason: str
) -> None:
    spoil(write_set(bundle, "fp16"))
    write_set(bundle, "bf16")
    with pytest.raises(EngineError, match=rf"capability 8\.6 in fp16: rtx-fp16-sm86 .*{reason}"):
        find_engine_set(bundle, *HERE, "fp16")
    with pytest.raises(EngineError, match=r"in fp32: rtx-bf16-sm86 .*is not rtx-fp32-sm86"):
        find_engine_set(bundle, *HERE, "fp32")


def test_each_set_that_does_not_fit_is_named(bundle: Bundle) -> None:
    make_stale(write_set(bundle, "fp16"))
    damage(write_set(bundle, "bf16"))
    write_set(bundle, "fp32", capability="8.9")
    with pytest.raises(EngineError) as caught:
        find_engine_set(bundle, *HERE)
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "rtx-fp16-sm86 is passed over (",
        "other weights",
        "rtx-bf16-sm86 is passed over (",
        "was altered",
        "rtx-fp32-sm89 is passed over (is not rtx-*-sm86)",
    ):
        assert part in message


def test_a_build_in_progress_is_no_set(bundle: Bundle) -> None:
    engine_set = write_set(bundle)
    engine_set.path.rename(engine_set.path.with_name(f".{engine_set.path.name}.x"))
    with pytest.raises(EngineError, match="has no engines: run trbert-deploy build-engine"):
        find_engine_set(bundle, *HERE)


def test_no_engines(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="has no engines: run trbert-deploy build-engine"):
        find_engine_set(bundle, *HERE)


def test_engines_for_other_gpus_alone(bundle: Bundle) -> None:
    write_set(bundle, capability="8.9")
    with pytest.raises(EngineError, match=r"no engines .* rtx-fp16-sm89 .* not rtx-\*-sm86"):
        find_engine_set(bundle, *HERE)


def test_engines_of_another_version_are_not_loaded(bundle: Bundle) -> None:
    write_set(bundle)
    with pytest.raises(EngineError, match=r"here is rtx 2\.0"):
        find_engine_set(bundle, "rtx", "2.0", "8.6")


def test_profile_by_length(engine_set: EngineSet) -> None:
    for name in ("dense", "segment_1"):
        found = [engine_set.profile_for(name, length) for length in (1, 16, 17, 64)]
        assert found == [0, 0, 1, 1]
    with pytest.raises(LengthError, match=r"rows of 65 tokens: .* takes 1 to 64; .*--lengths"):
        engine_set.profile_for("segment_1", 65)


@pytest.mark.parametrize(
    "numbers",
    [
        (0, 16, 1, 2, 4),
        (17, 16, 1, 2, 4),
        (1, 16, 0, 2, 4),
        (1, 16, 3, 2, 4),
        (2, 16, 1, 2, 4, 1),
        (1, 16, 1, 2, 4, 17),
        (1, 16, 1, 2, 4, -1),
    ],
)
def test_profile_that_cannot_be(numbers: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="expected ascending numbers from 1"):
        Profile(*numbers)


def test_profile_that_is_tuned_for_its_longest_rows() -> None:
    assert Profile(1, 16, 1, 2, 4).opt_length == 16
