"""Profiles of each engine: every length has one, tuned for what really comes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands_in_tests import run
from conftest import CheckpointMaker
from hypothesis import given
from hypothesis import strategies as st

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.bundle.manifest import Manifest, write_manifest
from trbert_deploy.config import Cut, ReductionConfig
from trbert_deploy.exporters.export import export_bundle
from trbert_deploy.exporters.tensorrt.engine_build import EngineOptions, build_engines
from trbert_deploy.exporters.tensorrt.plan import plan_engines
from trbert_deploy.exporters.tensorrt.profiles import engine_profiles, tokens_at_cuts
from trbert_deploy.runtime.backends.tensorrt.engine_set import Profile
from trbert_deploy.selection.capacity import Capacity
from trbert_deploy.selection.rules import SelectionRule
from trbert_deploy.selection.select import first_token, select

RULES = st.one_of(
    st.builds(SelectionRule, st.just("threshold"), st.floats(0, 1), st.integers(1, 8)),
    st.builds(SelectionRule, st.just("ratio"), st.floats(0.001, 1), st.integers(1, 8)),
    st.builds(SelectionRule, st.just("budget"), st.integers(1, 600)),
)
CAPACITIES = st.builds(Capacity, st.integers(0, 1024))


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return Bundle.open(tiny_bundle).manifest


def with_rules(
    manifest: Manifest, rules: tuple[SelectionRule, ...], capacities: tuple[Capacity, ...] = ()
) -> Manifest:
    """The manifest with other rules, as if texts had been counted with them."""
    reduction = manifest.reduction.with_rules(rules)
    return replace(manifest, reduction=reduction, capacities=capacities)


@given(
    rules=st.tuples(RULES, RULES),
    capacities=st.one_of(st.just(()), st.tuples(CAPACITIES, CAPACITIES)),
    ends=st.sets(st.integers(1, 4096), min_size=1, max_size=4),
    batches=st.sampled_from([(1, 8, 32), (4,), (2, 3)]),
)
def test_every_length_has_one_profile_of_each_engine(
    manifest: Manifest,
    rules: tuple[SelectionRule, ...],
    capacities: tuple[Capacity, ...],
    ends: set[int],
    batches: tuple[int, ...],
) -> None:
    known = with_rules(manifest, rules, capacities)
    buckets = EngineOptions(lengths=tuple(ends), batches=batches).profiles(4096)
    made = engine_profiles(known, buckets)
    assert list(made) == [graph.name for graph in known.graphs]
    assert made["segment_0"] == made["dense"] == buckets
    for name, profiles in made.items():
        covered = [
            length
            for profile in profiles
            for length in range(profile.min_length, profile.max_length + 1)
        ]
        assert covered == list(range(1, max(ends) + 1))  # each once, in ascending order
        for profile, bucket in zip(profiles, buckets, strict=True):
            assert profile.min_length <= profile.opt_length <= profile.max_length
            assert profile.max_batch == bucket.max_batch
            assert profile.opt_batch == bucket.opt_batch
            # What rows keep parts them: behind a cut one may come alone.
            whole = name in ("segment_0", "dense")
            assert profile.min_batch == (bucket.min_batch if whole else 1)


@given(
    rules=st.tuples(RULES, RULES),
    capacities=st.tuples(CAPACITIES, CAPACITIES),
    length=st.integers(1, 2000),
    seed=st.integers(0, 99),
)
def test_budgets_and_ratios_leave_what_the_chain_leaves(
    manifest: Manifest,
    rules: tuple[SelectionRule, ...],
    capacities: tuple[Capacity, ...],
    length: int,
    seed: int,
) -> None:
    left = tokens_at_cuts(with_rules(manifest, rules, capacities), length)
    assert left[0] == length
    rng = np.random.default_rng(seed)
    for cut, rule in enumerate(rules):
        entering = left[cut]
        if rule.kind == "threshold":
            assert left[cut + 1] == min(entering, capacities[cut].slots(length))
        else:
            logits = rng.standard_normal((1, entering)).astype(np.float32)
            keep = select(logits, None, rule, first_token(entering)[None])
            assert left[cut + 1] == keep.sum()


def test_a_profile_is_tuned_for_the_longest_row_of_a_bucket_that_it_takes(
    manifest: Manifest,
) -> None:
    buckets = EngineOptions(lengths=(128, 512, 2048), batches=(2, 8, 32)).profiles(2048)

    def tuned(*rules: SelectionRule, capacities: tuple[Capacity, ...] = ()) -> list[list[int]]:
        made = engine_profiles(with_rules(manifest, rules, capacities), buckets)
        return [[profile.opt_length for profile in made[f"segment_{index}"]] for index in (0, 1, 2)]

    assert tuned(SelectionRule("ratio", 0.3), SelectionRule("ratio", 0.5)) == [
        [128, 512, 2048],
        [39, 154, 615],  # of 128, 512 and 2,048 tokens
        [77, 308, 2048],  # half of these: 20 and 77 share a profile; the last has few rows
    ]
    budgets = tuned(SelectionRule("budget", 200), SelectionRule("budget", 64))
    assert budgets[1:] == [[128, 200, 2048], [64, 512, 2048]]
    unknown = SelectionRule("threshold", 0.5)
    assert tuned(unknown, unknown) == [[128, 512, 2048]] * 3
    assert tuned(unknown, SelectionRule("ratio", 0.5))[2] == [64, 256, 1024]
    counted = (Capacity(256), Capacity(128))
    assert tuned(unknown, unknown, capacities=counted)[1:] == [[48, 144, 528], [80, 272, 2048]]


@pytest.fixture
def told(make_checkpoint: CheckpointMaker, tmp_path: Path) -> Path:
    """A bundle of token embeddings' means, half of whose tokens survive the cut."""
    path = tmp_path / "bundle"
    mean = {"task": "feature-extraction", "labels": (), "answers": {"pooling": "mean"}}
    export_bundle(make_checkpoint(cuts="1", num_layers=2, answers_tokens=True, **mean), path)
    bundle = Bundle.open(path)
    ratio = ReductionConfig((Cut(1.0, SelectionRule("ratio", 0.5)),))
    write_manifest(path, replace(bundle.manifest, reduction=ratio))
    return path


def test_dropped_tokens_have_profiles_of_their_own(told: Path) -> None:
    manifest = Bundle.open(told).manifest
    made = engine_profiles(manifest, EngineOptions(lengths=(16, 64)).profiles(64))
    # Of a mean one state for each row is asked, whatever its length.
    assert [profile.opt_length for profile in made["dropped_0"]] == [1, 64]
    assert [profile.opt_length for profile in made["segment_1"]] == [8, 32]
    assert made["dropped_0"][0].min_batch == 1


def test_engines_are_built_with_them(told: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    options = EngineOptions(
        "fp32", lengths=(16, 64), batches=(2, 4), compute_capability="8.6", flavour="rtx"
    )
    report = build_engines(told, options)
    profiles = report.engine_set.manifest.key.profiles
    assert profiles["segment_0"] == (Profile(1, 16, 2, 4, 4), Profile(17, 64, 2, 4, 4))
    assert profiles["segment_1"] == (Profile(1, 16, 1, 4, 4, 8), Profile(17, 64, 1, 4, 4, 32))
    written = json.loads((report.engine_set.path / "manifest.json").read_text())
    assert written["format_version"] == 2
    assert written["key"]["profiles"]["segment_1"][1]["opt_length"] == 32
    assert report.to_json()["key"]["profiles"] == {
        name: tuple(map(vars, each)) for name, each in profiles.items()
    }
    assert build_engines(told, options).skipped
    planned = plan_engines(told, options)
    assert planned.profiles == profiles
    # Tokens that are each for themselves need no scratch for who attends to whom.
    pairs = 4 * 64**2
    difference = planned.scratch_bytes["segment_1"][1] - planned.scratch_bytes["dropped_0"][1]
    assert difference == pairs + 2 * pairs * 4 * 4
    figures = tmp_path / "plan.json"
    said = run("build-engine", told, "--plan", "--lengths", "16,64", "--json", figures)
    assert "32 x 32" not in said and "8 x 32" in said
    assert json.loads(figures.read_text())["profiles"]["segment_1"][1]["opt_length"] == 32
