"""The rows of the quality tables on a tiny model: training, resuming, figures, table, folds."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import compare
import datasets
import folds
import numpy as np
import pytest
import tables
import times
import torch
from chunks import ChunkStudent, Pooling, chunk_places
from click.testing import CliRunner
from compare import finish
from conftest import make_texts, tiny_model, tiny_spec
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from pooled import PooledStudent, group_sizes
from rows import ROWS, THRESHOLDED, train_row
from runs import Run, Stopwatch
from safetensors.torch import load_file
from scores import gains
from sentence_transformers import SentenceTransformer
from setting import Setting
from students import (
    by_attention,
    by_chance,
    first_tokens,
    head_and_tail,
    received_attention,
    thinner,
)
from test_embeddings_end_to_end import write_folder
from test_tokens_end_to_end import tagged
from training_in_tests import with_recipe

from trbert_deploy.bench.baselines import count_for, with_ratio
from trbert_deploy.config import ReductionConfig
from trbert_deploy.errors import CheckpointError, ConfigError, DataError
from trbert_deploy.flops import dense_flops, speedup
from trbert_deploy.modeling.checkpoints.checkpoint import Checkpoint, save_checkpoint
from trbert_deploy.modeling.layouts.packed import PackedLayout
from trbert_deploy.modeling.received_attention import RecordingLayout
from trbert_deploy.modeling.walk import TokenState, begin, dense_outputs
from trbert_deploy.runtime.token_state import TokenRow
from trbert_deploy.selection.operating_point import OperatingPoint
from trbert_deploy.training.batches import load_batches
from trbert_deploy.training.data import TrainingRow
from trbert_deploy.training.loop import RESUME_FILE
from trbert_deploy.training.options import TrainOptions
from trbert_deploy.training.recipe import HardRecipe, JointRecipe, PolicyRecipe, Recipe

TARGET = 1.6
CPU = torch.device("cpu")
STUDENTS = {"student-3": 4 / 3, "student-2": 2.0}  # of four layers
STUDENTS |= {"chunks-mean": 1.0, "chunks-max": 1.0}  # of texts that are no longer than a chunk


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    """A directory with a run whose teacher stage is done, and data."""
    path = tmp_path_factory.mktemp("comparison")
    datasets.config.HF_DATASETS_CACHE = path / "cache"
    for name, count, seed in (("train", 60, 0), ("validation", 32, 1), ("test", 40, 2)):
        rows = make_texts(count, seed)
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    checkpoint = Checkpoint(tiny_model("1,2"), tokenizer_dir, 64)
    save_checkpoint(checkpoint, path / "run" / "stages" / "teacher")
    return path


def setting_in(workplace: Path, **changes: object) -> Setting:
    values: dict[str, object] = {
        "teacher": str(workplace / "run" / "stages" / "teacher"),
        "train": str(workplace / "train.jsonl"),
        "validation": str(workplace / "validation.jsonl"),
    }
    return Setting(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def run(workplace: Path, tmp_path: Path) -> Run:
    setting = setting_in(workplace)
    options = TrainOptions(
        model=setting.teacher,
        train=setting.train,
        validation=setting.validation,
        target_speedup=TARGET,
        recipe=Recipe(
            averaged_runs=1,
            validations=2,
            batch_tokens=256,
            policy=PolicyRecipe(rollouts=2),
            joint=JointRecipe(rollouts=2),
            hard=HardRecipe(epochs=1.0),
        ),
    )
    return Run("truncate", setting, options, tmp_path / "out")


def options_for(run: Run, row: str) -> TrainOptions:
    if row != "tr-bert":
        return run.options
    return with_recipe(run.options, estimator="reinforce")


@pytest.mark.parametrize("row", list(ROWS))
def test_a_row_is_trained_once_and_tested_when_that_is_allowed(
    run: Run, workplace: Path, row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    run = replace(
        run,
        row=row,
        options=options_for(run, row),
        progress=lambda step, done, total: steps.append(step.split()[0]),
    )
    figures = finish(run, test=None)
    assert "test" not in figures
    validation = figures["validation"]
    wanted = 1.0 if row == "teacher" else STUDENTS.get(row, TARGET)
    assert validation["flops_speedup"] == pytest.approx(wanted, rel=0.05)
    assert np.mean(validation["statistics"]) == pytest.approx(validation["score"])
    assert validation["metrics"]["accuracy"] == pytest.approx(validation["score"])
    assert 0.0 <= validation["dense_score"] <= 1.0
    trained = {"teacher": set(), "tr-bert": {"policy", "joint"}}.get(row, {"hard"})
    borrowed = {"policy", "joint"} if row in ("ours", "fixed-ratio") else set()
    assert set(figures["training_seconds"]) == trained | borrowed
    assert trained <= set(steps)
    saved = [point["flops_speedup"] for point in validation.get("points", ())]
    assert saved == sorted(saved) and bool(saved) == (row in THRESHOLDED)

    steps.clear()
    tested = finish(run, str(workplace / "test.jsonl"))
    assert set(steps) == {"evaluation"}  # with the weights that are there
    assert tested["validation"] == validation
    assert (tested["test"]["rows"], len(tested["test"]["statistics"])) == (40, 40)

    monkeypatch.setattr(compare, "train_row", None)
    again = finish(run, str(workplace / "test.jsonl"))
    assert again == json.loads(json.dumps(tested))
    saved = json.loads((run.output / "results" / f"{run.name}.json").read_text())
    assert saved == again


def test_rows_of_a_tagger_are_judged_by_entities(
    run: Run, tokenizer_dir: Path, tmp_path: Path
) -> None:
    labels = ("B-BLAME", "B-PLACE", "B-PRAISE", "O")
    teacher = tiny_model("1,2", task="token-classification", labels=labels)
    save_checkpoint(Checkpoint(teacher, tokenizer_dir, 64), tmp_path / "teacher")
    files = {}
    for name, count, seed in (("train", 40, 0), ("validation", 24, 1)):
        lines = [json.dumps(row) + "\n" for row in tagged(count, seed)]
        files[name] = str(tmp_path / f"{name}.jsonl")
        Path(files[name]).write_text("".join(lines))
    setting = Setting(str(tmp_path / "teacher"), **files)
    figures = {}
    for row in ("teacher", "ours", "random", "student-2"):
        figures[row] = finish(replace(run, row=row, setting=setting), test=None)
        validation = figures[row]["validation"]
        counts = np.array(validation["statistics"])
        assert counts.shape == (24, 3)
        right, found, true = counts.sum(0)
        assert validation["score"] == pytest.approx(2 * right / (found + true))
        assert validation["metrics"]["entity_f1"] == validation["score"]
    # Dropped tokens answer, and random ones are not silent either: their maps were fitted.
    fitted = load_file(run.output / "random-1.6-s0" / "hard" / "model.safetensors")
    maps = [fitted[f"projections.{index}.weight"] for index in (0, 1)]
    assert all((each - torch.eye(32)).abs().max() > 0.1 for each in maps)
    (line,) = [line for line in tables.read_lines([run.output]) if line.name == "ours"]
    change, (low, high) = line.difference("validation")
    scores = [figures[row]["validation"]["score"] for row in ("ours", "teacher")]
    assert change == pytest.approx(100 * (scores[0] - scores[1])) and low <= change <= high
    with pytest.raises(ConfigError, match="token-classification answers each of them: give other"):
        train_row(replace(run, row="truncate", setting=setting))


class Interrupted(Exception):
    pass


def test_rows_of_a_sentence_encoder_are_judged_by_what_questions_find(
    run: Run, tokenizer_dir: Path, tmp_path: Path
) -> None:
    files = {}
    for name, count, seed in (("train", 40, 0), ("validation", 24, 1)):
        files[name] = str(tmp_path / f"{name}.jsonl")
        texts = [{"text": row["text"]} for row in make_texts(count, seed)]
        Path(files[name]).write_text("".join(json.dumps(text) + "\n" for text in texts))
    test = tmp_path / "test.jsonl"
    texts_of = {" ".join(row["text"].split()[:6]): row["text"] for row in make_texts(20, seed=2)}
    answers = {"text": ["x"], "answer_start": [0]}
    test.write_text(
        "".join(
            json.dumps({"question": question, "context": text, "answers": answers}) + "\n"
            for question, text in texts_of.items()
        )
    )
    setting = Setting(str(write_folder(tmp_path, tokenizer_dir, "mean", True)), **files)
    assert not setting.has_labels
    recipe = with_recipe(run.options, cuts="1,2").recipe
    options = replace(run.options, model=setting.teacher, recipe=recipe)
    figures = {
        row: finish(replace(run, row=row, setting=setting, options=options), str(test))
        for row in ("teacher", "ours", "random", "truncate", "pooled", "student-2")
    }
    for row, found in figures.items():
        validation, tested = found["validation"], found["test"]
        assert len(validation["statistics"]) == 24 and len(tested["statistics"]) == len(texts_of)
        assert validation["score"] == pytest.approx(np.mean(validation["statistics"]))
        assert tested["score"] == tested["metrics"]["ndcg_10"]
        same = row == "teacher"
        for cosine in (validation["score"], tested["metrics"]["cosine"]):
            assert cosine == pytest.approx(1.0) if same else 0.3 < cosine < 0.99999
        saved = {"teacher": 1.0, **STUDENTS}.get(row, TARGET)
        assert validation["flops_speedup"] == pytest.approx(saved, rel=0.05)
    # As sentence-transformers' own embeddings find them
    theirs = SentenceTransformer(setting.teacher, device="cpu")
    asked, sought = theirs.encode(list(texts_of)), theirs.encode(list(texts_of.values()))
    ndcg = gains(asked, sought, np.arange(len(texts_of)))[:, 0].mean()
    assert figures["teacher"]["test"]["score"] == pytest.approx(ndcg, abs=0.02)
    lines = {line.name: line for line in tables.read_lines([run.output])}
    assert abs(lines["ours"].difference("test")[0]) <= 100.0


@pytest.mark.parametrize("row", ["ours", "random", "truncate"])
def test_an_interrupted_row_ends_where_an_uninterrupted_one_does(run: Run, row: str) -> None:
    run = replace(run, row=row, options=with_recipe(run.options, save_seconds=0.0))
    whole = finish(run, test=None)

    def interrupt(step: str, done: int, total: int | None) -> None:
        if step.startswith("hard") and total and done == total // 2 + 1:
            raise Interrupted

    again = replace(run, output=run.output.with_name("parts"), progress=interrupt)
    with pytest.raises(Interrupted):
        finish(again, test=None)
    assert (again.directory / "hard" / RESUME_FILE).exists()
    parts = finish(replace(again, progress=run.progress), test=None)
    assert parts["validation"] == whole["validation"]
    one, other = (load_file(each.directory / "hard" / "model.safetensors") for each in (run, again))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_time_is_summed_over_interruptions(tmp_path: Path) -> None:
    path = tmp_path / "seconds.json"
    path.write_text('{"seconds": 1000.0}')
    watch = Stopwatch(path, lambda step, done, total: None)
    watch("hard", 1, 2)
    watch.save()
    assert json.loads(path.read_text())["seconds"] >= 1000.0


def a_row(length: int, seed: int = 0) -> TrainingRow:
    ids = np.random.default_rng(seed).integers(5, 200, length)
    return TrainingRow(TokenRow(ids, np.zeros(length, np.int64)), seed % 2)


def places(row: TrainingRow) -> list[int]:
    return row.tokens.input_ids.tolist()


def test_parts_of_a_text() -> None:
    row = TrainingRow(TokenRow(np.arange(20), np.arange(20) // 10), 1)
    assert places(first_tokens(6)(row)) == [0, 1, 2, 3, 4, 19]
    assert places(head_and_tail(10)(row)) == [0, 1, 2, *range(13, 20)]
    assert first_tokens(6)(row).tokens.token_type_ids.tolist() == [0, 0, 0, 0, 0, 1]
    for view in (first_tokens(20), head_and_tail(20)):
        assert view(row) is row
    assert len(first_tokens(3)(row)) == len(head_and_tail(3)(row)) == 3


@given(
    lengths=st.lists(st.integers(100, 512), min_size=20, max_size=60),
    wanted=st.floats(1.1, 3.0),
)
def test_the_wanted_computation_is_met(lengths: list[int], wanted: float) -> None:
    spec = tiny_spec(num_layers=6)
    rows = np.array(lengths)
    count = count_for(spec, rows, wanted)
    cut = sum(dense_flops(spec, min(length, count)) for length in lengths)
    assert sum(dense_flops(spec, length) for length in lengths) / cut == pytest.approx(
        wanted, rel=0.03
    )
    reduction = with_ratio(spec, ReductionConfig.parse("0.5,3"), rows, wanted)
    columns = [rows]
    for each in reduction.cuts:
        columns.append(np.ceil(each.rule.value * columns[-1] - 1e-9).astype(int))
    assert speedup(spec, reduction, np.stack(columns, 1).tolist()) == pytest.approx(
        wanted, rel=0.03
    )


def test_a_computation_out_of_reach_is_refused() -> None:
    lengths = np.array([10, 20])
    with pytest.raises(ConfigError, match=r"truncation saves \d.* at most: expected 900"):
        count_for(tiny_spec(), lengths, 900.0)
    with pytest.raises(ConfigError, match=r"a ratio at these cuts saves .* expected 9;"):
        with_ratio(tiny_spec(), ReductionConfig.parse("1,2"), lengths, 9.0)


def test_thin_students_begin_as_evenly_spaced_layers_of_the_teacher() -> None:
    teacher = tiny_model("none", num_layers=6)
    shared = teacher.encoder.embeddings.token.weight
    for count, taken in ((3, (0, 2, 4)), (2, (0, 3))):
        student = thinner(teacher, count)
        assert student.spec.num_layers == count
        assert torch.equal(student.encoder.embeddings.token.weight, shared)
        for index, layer in enumerate(taken):
            one, other = student.encoder.layers[index], teacher.encoder.layers[layer]
            assert all(
                torch.equal(a, b)
                for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
            )


@given(length=st.integers(1, 3000), size=st.integers(3, 600))
def test_chunks_have_all_of_a_text_once(length: int, size: int) -> None:
    chunks = chunk_places(length, size)
    assert max(map(len, chunks)) <= size
    body = [place for chunk in chunks for place in chunk[1:-1]]
    if length > size:
        assert body == list(range(1, length - 1))
        assert all((chunk[0], chunk[-1]) == (0, length - 1) for chunk in chunks)
        assert max(map(len, chunks)) - min(map(len, chunks)) <= 1
    else:
        assert chunks == [list(range(length))]


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_chunks_are_read_alone_and_their_states_pooled(pooling: Pooling) -> None:
    model = tiny_model("none")
    rows = [a_row(9, 1), a_row(20, 2), a_row(5, 3)]
    (batch,) = load_batches(rows, [[0, 1, 2]], CPU)
    student = ChunkStudent(model, size=8, pooling=pooling)
    with torch.no_grad():
        outputs, lengths = student.forward(batch)
        assert sorted(lengths) == [[5], [5], [6], [8], [8], [8]]
        for place, row in enumerate(batch.rows.tolist()):
            chunks = chunk_places(len(rows[row]), 8)
            parts = [replace(rows[row], tokens=rows[row].tokens.part(each)) for each in chunks]
            states = []
            for part in parts:
                (alone,) = load_batches([part], [[0]], CPU)
                states.append(begin(model, alone).run(model, 0, model.spec.num_steps).hidden[0])
            pooled = torch.stack(states)
            pooled = pooled.mean(0) if pooling == "mean" else pooled.amax(0)
            expected = model.head(pooled[None], alone.layout)["logits"][0]
            torch.testing.assert_close(outputs["logits"][place], expected)


def test_pairs_are_not_recombined_whatever_their_token_types(
    workplace: Path, tmp_path: Path
) -> None:
    pairs = [{**row, "text_pair": "a film"} for row in make_texts(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    setting = setting_in(workplace, train=str(tmp_path / "pairs.jsonl"))
    assert setting.recombined_rows(0.0) == []
    with pytest.raises(DataError, match="pairs of texts cannot be recombined"):
        setting.recombined_rows(1.0)


@given(length=st.integers(1, 3000), ratio=st.floats(0.01, 1.0))
def test_groups_have_all_of_a_text_and_are_as_many_as_a_cut_keeps(
    length: int, ratio: float
) -> None:
    sizes = group_sizes(length, ratio)
    assert sizes.sum() == length and sizes.min() >= 1
    assert len(sizes) == max(1, int(np.ceil(ratio * length - 1e-9)))
    if len(sizes) > 1:
        assert sizes[0] == 1 and sizes[1:].max() - sizes[1:].min() <= 1


def test_neighbours_are_averaged_between_two_layers() -> None:
    model = tiny_model("1")
    rows = [a_row(9, 1), a_row(20, 2), a_row(5, 3)]
    (batch,) = load_batches(rows, [[0, 1, 2]], CPU)
    with torch.no_grad():
        model.set_reduction(model.reduction.at(OperatingPoint(ratio=1.0)))
        outputs, _ = PooledStudent(model).forward(batch)
        expected = dense_outputs(model, batch)["logits"]
        torch.testing.assert_close(outputs["logits"], expected)
        model.set_reduction(model.reduction.at(OperatingPoint(ratio=0.4)))
        outputs, lengths = PooledStudent(model).forward(batch)
        assert sorted(lengths) == [[5, 2], [9, 4], [20, 8]]
        (alone,) = load_batches(rows[:1], [[0]], CPU)
        state = begin(model, alone).run(model, 0, 2).hidden
        parts = [
            state[:1],
            state[1:4].mean(0, True),
            state[4:7].mean(0, True),
            state[7:].mean(0, True),
        ]
        layout = PackedLayout(np.array([4]))
        hidden = model.encoder.run_steps(torch.cat(parts), layout, 2, model.spec.num_steps)
        wanted = model.head(hidden, layout)["logits"][0]
        torch.testing.assert_close(outputs["logits"][batch.rows.tolist().index(0)], wanted)


def test_random_selection_of_a_row_depends_on_nothing_but_the_row() -> None:
    model = tiny_model("1,2")
    model.set_reduction(with_ratio(model.spec, model.reduction, np.array([12, 30]), 1.5))
    rows = [a_row(12 + 2 * index, index) for index in range(6)]
    choose = by_chance(model, seed=3)

    def kept(members: list[int], training: bool = False) -> dict[int, list[int]]:
        """For each row the places that survive the first cut."""
        (batch,) = load_batches(rows, [members], CPU)
        hidden = torch.zeros(len(batch.input_ids), 32)
        tokens = TokenState(
            hidden, batch.layout, torch.arange(len(hidden)), batch.protected, batch.layout
        )
        keep = choose(batch, training)(0, hidden[:, 0], tokens)[0]
        row_of = torch.from_numpy(batch.rows)[batch.layout.row_of_token]
        return {row: batch.layout.positions[keep & (row_of == row)].tolist() for row in members}

    together, apart = kept([0, 1, 2, 3, 4, 5]), kept([4, 1])
    assert all(apart[row] == together[row] for row in apart)
    assert all(places[0] == 0 for places in together.values())
    assert kept([0, 1, 2, 3, 4, 5]) == together
    assert kept([4, 1], training=True) != kept([4, 1], training=True)


def test_received_attention_is_the_mean_over_heads_and_queries() -> None:
    model = tiny_model("1,2")
    (batch,) = load_batches([a_row(9, 1), a_row(5, 2)], [[0, 1]], CPU)
    hidden = torch.randn(14, 32, generator=torch.Generator().manual_seed(0))
    attention = model.encoder.layers[0].attention
    scores = received_attention(attention, hidden, batch.layout)
    with torch.no_grad():
        row = hidden[5:]  # rows lie by length: the longer one behind
        query, key = (linear(row).view(9, 4, 8) for linear in (attention.query, attention.key))
        expected = torch.zeros(9)
        for head in range(4):
            for token in range(9):
                products = [float(query[token, head] @ key[other, head]) for other in range(9)]
                expected += torch.tensor(products).div(8**0.5).softmax(0) / (4 * 9)
    torch.testing.assert_close(scores[5:], expected)
    assert scores.sum().item() == pytest.approx(2.0)  # each row's queries give away one in all


def test_received_attention_is_what_the_model_computes() -> None:
    model = tiny_model("1,2", family="mpnet", token_types=0, options={"buckets": 32})
    with torch.no_grad():
        model.encoder.relative.table.weight.normal_(generator=torch.Generator().manual_seed(0))
        (batch,) = load_batches([a_row(9, 1), a_row(5, 2)], [[0, 1]], CPU)
        hidden = torch.randn(14, 32, generator=torch.Generator().manual_seed(0))
        attention, relative = model.encoder.layers[0].attention, model.encoder.relative
        scores = received_attention(attention, hidden, batch.layout, relative)
        for row in (slice(0, 5), slice(5, 14)):
            layout = RecordingLayout(batch.layout.positions[None, row])
            attention(hidden[None, row], layout, relative)
            torch.testing.assert_close(scores[row], layout.received[0])
        relative.table.weight.zero_()
        unbiased = received_attention(attention, hidden, batch.layout, relative)
    assert not torch.allclose(scores, unbiased, atol=0.01)


def test_attention_looks_at_the_last_layer_before_each_cut(
    monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    seen: list[object] = []

    def received(attention: object, *given: object) -> torch.Tensor:
        seen.append(attention)
        return received_attention(attention, *given)  # type: ignore[arg-type]

    monkeypatch.setattr("students.received_attention", received)
    for cuts, layers in (("1,3", (0, 2)), ("0.5,2.5", (0, 2)), ("1.5,3.5", (1, 3))):
        options = with_recipe(run.options, cuts=cuts, hard={"epochs": 0.01})
        options = replace(options, target_speedup=1.1)
        student = train_row(replace(run, row="attention", options=options, variant=cuts))
        seen.clear()
        (batch,) = load_batches([a_row(12)], [[0]], CPU)
        with torch.no_grad():
            student.forward(batch)
        assert seen == [student.model.encoder.layers[layer].attention for layer in layers]
    for cuts in ("0,2", "0.5,1"):
        with pytest.raises(ConfigError, match="an attention before every cut"):
            by_attention(tiny_model(cuts))


def test_texts_longer_than_the_teachers_positions(run: Run, workplace: Path) -> None:
    setting = setting_in(workplace, max_length=100, texts=10)
    assert len(setting.training_rows) == 10
    assert setting.training_rows[0].tokens.input_ids.tolist() == (
        setting_in(workplace, texts=10).training_rows[0].tokens.input_ids.tolist()
    )
    run = replace(run, setting=setting, options=replace(run.options, max_length=100))
    student = train_row(run)
    assert student.model.spec.max_positions == 100
    setting.claim(run.output)
    with pytest.raises(ConfigError, match=r"another setting \(texts\)"):
        replace(setting, texts=9).claim(run.output)


def test_a_teacher_needs_a_head(workplace: Path, tokenizer_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, BertModel

    teacher = setting_in(workplace).teacher
    config = AutoModelForSequenceClassification.from_pretrained(teacher).config
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="expected a fine-tuned teacher"):
        setting_in(workplace, teacher=str(tmp_path)).load_teacher()


def test_the_commands_make_rows_a_table_and_a_picture(workplace: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = ["--teacher", workplace / "run", "--train", workplace / "train.jsonl"]
    command += ["--validation", workplace / "validation.jsonl", "--output", output]
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("batch_tokens = 256\nvalidations = 1\n[hard]\nepochs = 0.2\n")
    command += ["--target-speedup", "1.5", "--recipe", recipe, "--texts", "30"]

    def invoke(main: object, *arguments: object) -> str:
        done = CliRunner().invoke(main, [str(argument) for argument in arguments])  # type: ignore[arg-type]
        assert done.exit_code == 0, done.output
        return done.stdout

    empty = CliRunner().invoke(tables.main, [str(tmp_path)])
    assert (empty.exit_code, "has no figures of a teacher" in empty.output) == (1, True)
    for seed in (0, 1):
        told = invoke(
            compare.main, *command, "--row", "teacher", "--row", "truncate", "--seed", seed
        )
        assert f"truncate-1.5-s{seed}  validation" in told
    table = invoke(tables.main, output).splitlines()
    assert [line.split(" | ")[0] for line in table] == ["| row", "| ---", "| teacher", "| truncate"]
    assert "validation [95 %]" in table[0] and " ± " in table[3]

    test = ("--test", workplace / "test.jsonl")
    invoke(compare.main, *command, *test, "--row", "teacher", "--row", "student-2")
    for seed in (0, 1):
        invoke(compare.main, *command, *test, "--row", "truncate", "--seed", seed)
    invoke(times.main, output, "--texts", "12")
    table = invoke(tables.main, output, "--plot", tmp_path / "rows.png").splitlines()
    assert "test [95 %]" in table[0] and "measured speed-up" in table[0]
    assert len(table) == 5
    height, width, _ = imread(tmp_path / "rows.png").shape
    assert 500 < height < 1000 and 1500 < width < 3000

    recipe.write_text(recipe.read_text() + "learning_rate = 1.0\n")
    refused = CliRunner().invoke(compare.main, [*map(str, command), "--row", "truncate"])
    assert refused.exit_code == 1
    assert "begun with other options ([hard] learning_rate)" in refused.output
    refused = CliRunner().invoke(compare.main, [*map(str, command), "--row", "tr-bert"])
    assert "row tr-bert takes a recipe of the estimator reinforce, and" in refused.output
    refused = CliRunner().invoke(
        compare.main, [*map(str, command[:4]), "--output", str(output), "--row", "ours"]
    )
    assert "no validation data: give --validation" in refused.output


def test_a_difference_counts_each_text_once() -> None:
    def run(correct: str, teacher: str, data: str) -> dict[str, object]:
        split = {"statistics": [[int(right)] for right in correct], "data": data}
        teachers = {"test": {"statistics": [[int(right)] for right in teacher]}}
        kind = {"task": "text-classification", "problem": ""}
        return {"row": "ours", **kind, "test": split, "teacher": teachers}

    seeds = [run("1100", "1110", "a"), run("1111", "1110", "a"), run("01", "11", "b")]
    change, (low, high) = tables.Line("ours", seeds).difference("test")
    assert change == pytest.approx(100 * (0 + 0 - 0.5 + 0.5 - 1 + 0) / 6)
    assert low < change < high


def test_folds_test_every_text_once_and_keep_the_labels_shares(
    workplace: Path, tmp_path: Path
) -> None:
    files = [str(workplace / name) for name in ("train.jsonl", "test.jsonl")]
    done = CliRunner().invoke(folds.main, [*files, "--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    every = Counter(row["text"] for file in files for row in read(Path(file)))
    tested: Counter[str] = Counter()
    for number in range(1, 6):
        parts = {
            name: read(tmp_path / f"fold-{number}" / f"{name}.jsonl")
            for name in ("train", "validation", "test")
        }
        assert sum(
            (Counter(row["text"] for row in part) for part in parts.values()), Counter()
        ) == (every)
        tested += Counter(row["text"] for row in parts["test"])
        good = [sum(row["label"] == "good" for row in part) / len(part) for part in parts.values()]
        assert max(good) - min(good) < 0.1
    assert tested == every
    few = CliRunner().invoke(folds.main, [files[0], "--output", str(tmp_path), "--folds", "31"])
    assert "60 texts are too few for 31 folds" in few.output


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
