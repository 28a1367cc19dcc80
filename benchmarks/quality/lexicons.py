"""What does a lexicon tell a tagger, and what does it cost where it is wrong?

    python benchmarks/quality/lexicons.py --encoder DIR --train FILE --validation FILE \\
        --test FILE --recipe benchmarks/quality/recipes/tagging-lexicon.toml --output DIR

Two taggers are trained from one encoder: ``plain``, and ``lexicon``, which learns with the entities
of the training texts as its lexicon. The second is then given other lexicons, without training:

    none        no phrase at all
    training    the entities of the training texts
    added       these, and the entities of the test texts
    half        these, and a random half of the entities of the test texts
    wrong-10    as ``added``, with so many wrong entries that they are 10 % of all
    wrong-30    likewise 30 %

Half of the wrong entries are entities with another tag, half are words of the training texts that
are in no entity. Each is judged by entity F1, as seqeval has it, with all tokens and with those
that the cuts leave. What is there is not made again: a training goes on where it was, a condition
that has its figures is skipped. Several calls may take a part each (``--model``, ``--condition``).
At the end there is the table of what there is so far.

DIR/
  <model>/                       the run of trbert-deploy train
  train.jsonl ...                the windows, as many as were asked for
  entities.tsv                   the lexicon of the training texts
  results/<model>-<lexicon>.json figures
"""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import click
import torch

from trbert_deploy import console
from trbert_deploy.errors import TrbertError
from trbert_deploy.evaluation.quality import evaluate_quality
from trbert_deploy.files import read_json, write_json, write_json_lines
from trbert_deploy.lexicon.entries import Entry, read_entries, write_entries
from trbert_deploy.modeling.checkpoints.pipeline import load_checkpoint_pipeline
from trbert_deploy.progress import Progress
from trbert_deploy.runtime.reading.examples import read_examples
from trbert_deploy.tasks.chunks import chunks, parsed
from trbert_deploy.tasks.examples import Example
from trbert_deploy.tasks.token_classification import TokenClassification
from trbert_deploy.training.options import TrainOptions
from trbert_deploy.training.recipe import Recipe
from trbert_deploy.training.run import RUN_FILE, train

MODELS = ("plain", "lexicon")
#: Model -> the lexicons that it is judged with.
CONDITIONS = {
    "plain": ("none",),
    "lexicon": ("none", "training", "half", "added", "wrong-10", "wrong-30"),
}
SPLITS = ("train", "validation", "test")
SEED = 0


def entities(examples: Sequence[Example]) -> list[Entry]:
    """The entities of texts, each once with each of its tags, in order."""
    found = {}
    for example in examples:
        tags = [parsed(tag) for _, _, tag in example.target]
        for kind, first, last in sorted(chunks(tags), key=lambda chunk: chunk[1]):
            text = example.text[example.target[first][0] : example.target[last][1]]
            found[Entry(text, kind)] = None
    return list(found)


def wrong_entries(examples: Sequence[Example], right: Sequence[Entry], count: int) -> list[Entry]:
    """Entries that are wrong, half of them entities with another tag, half other words.

    Args:
        examples: whose words are taken that are in no entity.
        right: entries that are not to be among them.
    """
    rng = random.Random(SEED)
    known, tags = {*right}, sorted({entry.tag for entry in right})
    words = sorted(
        {
            example.text[start:end]
            for example in examples
            for start, end, tag in example.target
            if parsed(tag) is None and example.text[start:end].isalpha()
        }
    )
    phrases = [entry.phrase for entry in right]
    made: dict[Entry, None] = {}
    while len(made) < count:
        source = phrases if len(made) % 2 else words
        entry = Entry(rng.choice(source), rng.choice(tags))
        if entry not in known:
            made[entry] = None
    return list(made)


def lexicon_of(condition: str, training: Sequence[Example], test: Sequence[Example]) -> list[Entry]:
    """The entries of a condition."""
    if condition == "none":
        return []
    own, more = entities(training), entities(test)
    if condition == "training":
        return own
    if condition == "half":
        more = random.Random(SEED).sample(more, len(more) // 2)
    right = list(dict.fromkeys([*own, *more]))
    if not condition.startswith("wrong-"):
        return right
    share = int(condition.removeprefix("wrong-")) / 100
    return right + wrong_entries(training, right, round(len(right) * share / (1 - share)))


def trained(output: Path, model: str, encoder: str, recipe: Recipe, progress: Progress) -> Path:
    """The checkpoint of a model, trained as far as it is not yet."""
    run = output / model
    options = TrainOptions(
        model=encoder,
        train=str(output / "train.jsonl"),
        validation=str(output / "validation.jsonl"),
        task=TokenClassification.name,
        target_speedup=2.0,
        max_length=384,
        lexicon=str(output / "entities.tsv") if model == "lexicon" else None,
        recipe=recipe,
    )
    train(options, run, resume=(run / RUN_FILE).exists(), progress=progress)
    return run


def judge(
    checkpoint: Path,
    condition: str,
    entries: Sequence[Entry],
    test: Sequence[Example],
    progress: Progress,
) -> dict[str, float | int | str]:
    """Figures of a model with a lexicon."""
    pipeline = load_checkpoint_pipeline(checkpoint).without_lexicon().with_lexicon(entries)
    report = evaluate_quality(pipeline, test, progress=progress)
    rows = pipeline.tokenize([example.text for example in test])
    protected = sum(int(row.protected.sum()) for row in rows)
    return {
        "condition": condition,
        "entries": len(entries),
        "dense_f1": report.dense.metrics["entity_f1"],
        "reduced_f1": report.reduced.metrics["entity_f1"],
        "flops_speedup": report.flops_speedup,
        "protected_share": protected / sum(map(len, rows)),
    }


def table(output: Path) -> str:
    """All figures that there are, as Markdown."""
    lines = [
        "| model | lexicon | entries | tokens in matches | F1, all tokens | F1, reduced | FLOPs |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for model, conditions in CONDITIONS.items():
        for condition in conditions:
            path = output / "results" / f"{model}-{condition}.json"
            if path.exists():
                found = read_json(path)
                lines.append(
                    f"| {model} | {condition} | {found['entries']:,} | "
                    f"{found['protected_share']:.1%} | {found['dense_f1']:.2%} | "
                    f"{found['reduced_f1']:.2%} | {found['flops_speedup']:.2f}x less |"
                )
    return "\n".join(lines)


@click.command()
@click.option("--encoder", required=True, metavar="MODEL")
@click.option("--train", "train_file", required=True, type=click.Path(path_type=Path))
@click.option("--validation", required=True, type=click.Path(path_type=Path))
@click.option("--test", required=True, type=click.Path(path_type=Path))
@click.option("--recipe", default="gates", metavar="RECIPE", help="Of both trainings.")
@click.option("--output", required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--model", "models", multiple=True, type=click.Choice(MODELS), help="[default: both]")
@click.option("--condition", "chosen", multiple=True, help="[default: all of the model's]")
@click.option("--rows", type=click.IntRange(min=20), help="Of each file, the first [default: all].")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of PyTorch.")
def main(
    encoder: str,
    train_file: Path,
    validation: Path,
    test: Path,
    recipe: str,
    output: Path,
    models: tuple[str, ...],
    chosen: tuple[str, ...],
    rows: int | None,
    threads: int | None,
) -> None:
    """Train what is not trained yet, judge what is not judged yet, and print the table."""
    if threads:
        torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    try:
        files = dict(zip(SPLITS, (train_file, validation, test), strict=True))
        texts = {split: _texts(output, split, file, rows) for split, file in files.items()}
        if not (output / "entities.tsv").exists():
            write_entries(output / "entities.tsv", entities(texts["train"]))
        assert read_entries(output / "entities.tsv") == entities(texts["train"])
        for model in models or MODELS:
            with console.progress(model) as progress:
                checkpoint = trained(output, model, encoder, Recipe.found(recipe), progress)
                for condition in CONDITIONS[model]:
                    path = output / "results" / f"{model}-{condition}.json"
                    if path.exists() or (chosen and condition not in chosen):
                        continue
                    entries = lexicon_of(condition, texts["train"], texts["test"])
                    write_json(path, judge(checkpoint, condition, entries, texts["test"], progress))
        print(table(output))
    except TrbertError as problem:
        sys.exit(f"error: {problem}")


def _texts(output: Path, split: str, file: Path, rows: int | None) -> list[Example]:
    """The first texts of a file, which are copied beside what is made of them."""
    copy = output / f"{split}.jsonl"
    if not copy.exists():
        output.mkdir(parents=True, exist_ok=True)
        records = ({"tokens": words, "ner_tags": tags} for words, tags in _words(file))
        write_json_lines(copy, islice(records, rows))
    return list(read_examples(copy, TokenClassification))


def _words(file: Path) -> list[tuple[list[str], list[str]]]:
    found = []
    for example in read_examples(file, TokenClassification):
        words = [example.text[start:end] for start, end, _ in example.target]
        found.append((words, [tag for _, _, tag in example.target]))
    return found


if __name__ == "__main__":
    main()
