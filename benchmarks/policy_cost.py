"""What a text costs in the policy stage, as a multiple of plain fine-tuning on the same texts.

    python benchmarks/policy_cost.py --data FILE.jsonl [--model DIR] [--rollouts 8]

Both steps run on the same batches in turns, in this process, with the same precision:
fine-tuning is forward, backward and optimizer step of the dense model; a policy step runs the
first segment once, K rollouts on survivors, and backward and optimizer step of the policies.
The policies are new, so they keep about half of the tokens at every cut; ``--keep`` shifts
them to keep more or less.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from trbert_deploy.demo.quickstart import packaged_encoder
from trbert_deploy.modeling.checkpoints.pretrained import load_pretrained
from trbert_deploy.modeling.checkpoints.tokenizer import tokenizer_directory
from trbert_deploy.modeling.checkpoints.tokenizer_files import TOKENIZER_FILE
from trbert_deploy.modeling.walk import dense_outputs, first_segment
from trbert_deploy.runtime.tokenizing import TextTokenizer
from trbert_deploy.tasks.registry import task_of
from trbert_deploy.tasks.text_classification import LOGITS, TextClassification
from trbert_deploy.training.batches import PackedBatch, load_batches, plan_batches
from trbert_deploy.training.contexts import autocast
from trbert_deploy.training.data import read_data, require_targets, tokenize
from trbert_deploy.training.estimators.rollouts import run_rollouts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default=str(packaged_encoder()))
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--keep", type=float, default=0.5)
    arguments = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    examples = require_targets(read_data(arguments.data, TextClassification), TextClassification)
    head = TextClassification.new_head(examples)
    model = load_pretrained(arguments.model, head, None).model.to(device)
    with torch.no_grad():
        for policy in model.policies:
            policy.score.bias.fill_(math.log(arguments.keep / (1 - arguments.keep)))
    with tempfile.TemporaryDirectory() as scratch:
        path = tokenizer_directory(arguments.model, Path(scratch)) / TOKENIZER_FILE
        tokenizer = TextTokenizer(path, arguments.max_length)
    rows = tokenize(examples, tokenizer, task_of(model.spec))
    plan = plan_batches([len(row) for row in rows], arguments.batch_tokens, seed=0)
    batches = list(load_batches(rows, plan[: arguments.batches + 1], device))
    encoder = [*model.encoder.parameters(), *model.head.parameters()]
    fine_tuner = torch.optim.AdamW(encoder, lr=1e-9)
    policy_trainer = torch.optim.AdamW(model.policies.parameters(), lr=1e-9)
    kept: list[tuple[float, ...]] = []

    def fine_tune(batch: PackedBatch) -> None:
        model.train()
        with autocast(device):
            loss = model.head.loss(dense_outputs(model, batch), batch.targets).mean()
        fine_tuner.zero_grad()
        loss.backward()
        fine_tuner.step()

    def teach_policy(batch: PackedBatch) -> None:
        model.eval()
        for parameter in encoder:
            parameter.requires_grad_(False)
        # A teacher that does not know: what it says changes no time.
        teacher = {LOGITS: torch.zeros(len(batch.rows), len(model.spec.labels), device=device)}
        with autocast(device):
            rollouts = run_rollouts(
                model,
                first_segment(model, batch),
                lambda outputs: model.head.path_loss(outputs, None, teacher),
                arguments.rollouts,
                lambda share: 1.0,
            )
        policy_trainer.zero_grad()
        rollouts.policy_loss.backward()
        policy_trainer.step()
        kept.append(rollouts.kept)
        for parameter in encoder:
            parameter.requires_grad_(True)

    times: dict[str, list[float]] = {"fine_tune": [], "policy": []}
    for number, batch in enumerate(batches):
        for name, step in (("fine_tune", fine_tune), ("policy", teach_policy)):
            elapsed = _seconds(step, batch)
            if number:  # the first batch warms up
                times[name].append(elapsed / len(batch.rows))
    ratios = [policy / tune for tune, policy in zip(*times.values(), strict=True)]
    print(
        json.dumps(
            {
                "texts_per_batch": len(batches[1].rows),
                "fine_tune_ms_per_text": 1e3 * statistics.median(times["fine_tune"]),
                "policy_ms_per_text": 1e3 * statistics.median(times["policy"]),
                "ratio": statistics.median(ratios),
                "rollouts": arguments.rollouts,
                "kept": [statistics.mean(shares) for shares in zip(*kept, strict=True)],
            },
            indent=2,
        )
    )


def _seconds(step: Callable[[PackedBatch], None], batch: PackedBatch) -> float:
    start = time.perf_counter()
    step(batch)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
