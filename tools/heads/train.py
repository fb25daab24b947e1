"""Trains an example of each head on the bundled model and prints its accuracy on rows that it has not seen.

    python -m tools.heads.train [library-chapters] [token-kinds] [docstring-answers] [--model FOLDER] [--output FOLDER]

A head is saved as what it adds to the model: the head's weights and low-rank additions to the backbone.
"""

import argparse
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
import numpy as np
from mlx.utils import tree_flatten, tree_map

import mlx_qwen3
from mlx_qwen3 import AutoTokenizer

from . import data
from .low_rank import add_low_rank

IGNORED = -100


class Chapters:
    """Sequence classification."""

    name, task, cls, build = (
        "library-chapters",
        "text-classification",
        "Qwen3ForSequenceClassification",
        staticmethod(data.library_chapters),
    )
    labels = tuple(data.CHAPTERS)

    def example(self, tokenizer: Any, row: data.Row) -> tuple[list[int], Any]:
        return tokenizer.encode(row.text), self.labels.index(row.label)

    def loss(self, model: Any, ids: mx.array, lengths: mx.array, targets: np.ndarray) -> mx.array:
        output = model(ids, last_positions=lengths - 1, labels=mx.array(targets), use_cache=False)
        return output.loss

    def judge(self, predict: Any, rows: list[data.Row], train: list[data.Row]) -> dict[str, float]:
        found = predict([row.text for row in rows])
        most = Counter(row.label for row in train).most_common(1)[0][0]
        return {
            "accuracy": float(np.mean([one["label"] == row.label for one, row in zip(found, rows, strict=True)])),
            "majority": float(np.mean([row.label == most for row in rows])),
        }


class Kinds:
    """Token classification. A token of the model takes the kind of the Python token that its first character is in."""

    name, task, cls, build = (
        "token-kinds",
        "token-classification",
        "Qwen3ForTokenClassification",
        staticmethod(data.token_kinds),
    )
    labels = ("O", *data.KINDS)

    def targets(self, tokenizer: Any, row: data.Row) -> tuple[list[int], list[int]]:
        encoding = tokenizer(row.text, return_offsets_mapping=True)
        kinds = ["O"] * len(row.text)
        for start, end, kind in row.label:
            kinds[start:end] = [kind] * (end - start)
        covered = row.label[-1][1]
        found = []
        for start, end in encoding["offset_mapping"]:
            inside = start + len(row.text[start:end]) - len(row.text[start:end].lstrip())
            known = inside < min(end, covered)
            found.append(self.labels.index(kinds[inside]) if known else IGNORED)
        return encoding["input_ids"], found

    def example(self, tokenizer: Any, row: data.Row) -> tuple[list[int], Any]:
        return self.targets(tokenizer, row)

    def loss(self, model: Any, ids: mx.array, lengths: mx.array, targets: np.ndarray) -> mx.array:
        return model(ids, labels=mx.array(targets), use_cache=False).loss

    def judge(self, predict: Any, rows: list[data.Row], train: list[data.Row]) -> dict[str, float]:
        found = predict([row.text for row in rows], ignore_labels=[])
        right, targets = [], []
        for entities, row in zip(found, rows, strict=True):
            _, wanted = self.targets(predict.tokenizer, row)
            for entity, target in zip(entities, wanted, strict=True):
                if target != IGNORED:
                    targets.append(target)
                    right.append(entity["entity"] == self.labels[target])
        most = Counter(targets).most_common(1)[0][1]
        return {"accuracy": float(np.mean(right)), "majority": most / len(targets)}


class Answers:
    """Question answering. The text's tokens that touch the answer are the span."""

    name, task, cls, build = (
        "docstring-answers",
        "question-answering",
        "Qwen3ForQuestionAnswering",
        staticmethod(data.docstring_answers),
    )
    labels = ("LABEL_0", "LABEL_1")

    def example(self, tokenizer: Any, row: data.Row) -> tuple[list[int], Any]:
        encoding = tokenizer(row.question, row.text)
        tokens = [
            index
            for index, (sequence, (start, end)) in enumerate(
                zip(encoding.sequence_ids(), encoding[0].offsets, strict=True)
            )
            if sequence == 1 and start < row.label[1] and end > row.label[0]
        ]
        return encoding["input_ids"], (tokens[0], tokens[-1])

    def loss(self, model: Any, ids: mx.array, lengths: mx.array, targets: np.ndarray) -> mx.array:
        starts, ends = mx.array(targets[:, 0]), mx.array(targets[:, 1])
        return model(ids, start_positions=starts, end_positions=ends, use_cache=False).loss

    def judge(self, predict: Any, rows: list[data.Row], train: list[data.Row]) -> dict[str, float]:
        asked = [{"question": row.question, "context": row.text} for row in rows]
        found = predict(asked, max_answer_len=64)
        last = [row.label[1] == len(row.text) - 1 for row in rows]  # always the explanation
        exact = [one["answer"] == row.text[slice(*row.label)] for one, row in zip(found, rows, strict=True)]
        return {"accuracy": float(np.mean(exact)), "majority": float(np.mean(last))}


RECIPES = {recipe.name: recipe for recipe in (Chapters(), Kinds(), Answers())}


def batches(examples: list[Any], size: int, seed: int) -> Any:
    """(ids (B, L), lengths (B,), targets), rows of similar length together, batches in random order."""
    draw = random.Random(seed)
    order = sorted(range(len(examples)), key=lambda i: (len(examples[i][0]), draw.random()))
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    draw.shuffle(groups)
    for group in groups:
        width = max(len(examples[i][0]) for i in group)
        ids = np.zeros((len(group), width), dtype=np.int32)
        targets = []
        for row, i in enumerate(group):
            own, target = examples[i]
            ids[row, : len(own)] = own
            targets.append([*target, *[IGNORED] * (width - len(own))] if isinstance(target, list) else target)
        lengths = np.array([len(examples[i][0]) for i in group], dtype=np.int32)
        yield mx.array(ids), mx.array(lengths), np.array(targets, dtype=np.int32)


def train(recipe: Any, folder: Path, output: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Trains, judges and saves one head; what was measured."""
    mx.random.seed(options.seed)
    rows = recipe.build(options.rows)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    examples = [recipe.example(tokenizer, row) for row in rows.train]
    model = getattr(mlx_qwen3, recipe.cls).from_pretrained(
        folder, dtype="float32", unpack=True, id2label=dict(enumerate(recipe.labels))
    )
    if options.rank:
        add_low_rank(model.base_model, options.rank)
    else:
        model.base_model.freeze()
    steps = options.epochs * -(-len(examples) // options.batch_size)
    warm = max(1, steps // 20)
    schedule = optimizers.join_schedules(
        [
            optimizers.linear_schedule(0, options.learning_rate, warm),
            optimizers.cosine_decay(options.learning_rate, steps - warm),
        ],
        [warm],
    )
    optimizer = optimizers.AdamW(schedule, weight_decay=0.01)
    step = nn.value_and_grad(model, lambda *batch: recipe.loss(model, *batch))
    start, losses = time.perf_counter(), []
    for epoch in range(options.epochs):
        for batch in batches(examples, options.batch_size, options.seed + epoch):
            loss, gradients = step(*batch)
            gradients, _ = optimizers.clip_grad_norm(gradients, 1.0)
            optimizer.update(model, gradients)
            mx.eval(model.trainable_parameters(), optimizer.state)
            losses.append(loss.item())
            if len(losses) % 25 == 0:
                print(f"{recipe.name}: step {len(losses)} of {steps}, loss {np.mean(losses[-25:]):.3f}", flush=True)
    seconds = time.perf_counter() - start
    save(recipe, model, output / recipe.name)
    model.eval()
    predict = mlx_qwen3.pipeline(recipe.task, model, tokenizer)
    result = {
        "rows": len(rows.train),
        "held_out": len(rows.held_out),
        **recipe.judge(predict, rows.held_out, rows.train),
        "seconds": round(seconds),
    }
    print(f"{recipe.name}: {json.dumps(result)}", flush=True)
    return result


def save(recipe: Any, model: Any, folder: Path) -> None:
    """Write what the head adds to the model: bfloat16 weights, and the labels."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name.replace(".linear.", "."): array.astype(mx.bfloat16)
        for name, array in tree_flatten(model.trainable_parameters())
    }
    model.update(tree_map(lambda array: array.astype(mx.bfloat16).astype(mx.float32), model.trainable_parameters()))
    mx.save_safetensors(str(folder / "head.safetensors"), weights, {"format": "mlx"})
    values = {"architecture": recipe.cls, "id2label": dict(enumerate(recipe.labels))}
    (folder / "head.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(RECIPES)}; by default all")
    parser.add_argument("--model", type=Path, help="the backbone; by default the bundled model")
    parser.add_argument("--output", type=Path, default=Path("mlx_qwen3/bundled/heads"))
    parser.add_argument("--rows", type=int, default=2400)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--rank", type=int, default=8, help="of the additions to the backbone; 0 for the head alone")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in options.names:
        if name not in RECIPES:
            parser.error(f"unknown head {name!r}; expected some of {', '.join(RECIPES)}")
    folder = options.model
    if folder is None:
        from mlx_qwen3.bundled import bundled_model_path

        folder = bundled_model_path()
    results = {name: train(RECIPES[name], folder, options.output, options) for name in options.names or RECIPES}
    print("| head | rows | held out | majority | accuracy |\n| --- | ---: | ---: | ---: | ---: |")
    for name, result in results.items():
        shares = f"{result['majority']:.1%} | {result['accuracy']:.1%}"
        print(f"| {name} | {result['rows']} | {result['held_out']} | {shares} |")


if __name__ == "__main__":
    main()
