"""Compare training methods on a real task: which module of Python's library does a docstring belong to?

    python benchmarks/training_task.py [--seeds 3] [--methods head lora lora/mean full full/mean] [--output FILE]
    python benchmarks/training_task.py --curve

Print a Markdown table of the held-out accuracy per seed, and that of TF-IDF with logistic regression if scikit-learn is
installed. lora/mean and full/mean pool the mean over the tokens instead of the last token. FILE contains the held-out
accuracy after each epoch. The seed determines the split, the initial weights and the order of the rows.

With --curve, measure the few-shot curve of the frozen head instead.
"""

import argparse
import importlib
import json
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import mlx_qwen3 as q

MODULES = ("math", "datetime", "pathlib", "socket", "logging", "statistics")
PER_MODULE, CHARACTERS = 36, 120


def docstrings() -> tuple[list[str], list[str]]:
    """Return the beginnings of docstrings, and the module of each."""
    texts, labels = [], []
    for name in MODULES:
        module = importlib.import_module(name)
        found: dict[str, None] = {}
        own = [
            value for value in vars(module).values() if isinstance(value, type) and value.__module__.strip("_") == name
        ]
        for owner in (module, *own):
            for path, thing in vars(owner).items():
                text = getattr(thing, "__doc__", None) if callable(thing) and not path.startswith("_") else None
                if isinstance(text, str) and len(text.split()) > 3:
                    found.setdefault(" ".join(text.split())[:CHARACTERS])
        chosen = sorted(found)[:PER_MODULE]
        texts += chosen
        labels += [name] * len(chosen)
    return texts, labels


def split(labels: list[str], seed: int, per_label: int | None = None) -> tuple[list[int], list[int]]:
    """Return the training rows and the held-out rows, which are a third of each label."""
    rng = np.random.default_rng(seed)
    train, held = [], []
    for label in MODULES:
        rows = rng.permutation([i for i, other in enumerate(labels) if other == label]).tolist()
        third = len(rows) // 3
        held += rows[:third]
        train += rows[third:] if per_label is None else rows[third : third + per_label]
    return train, held


def tfidf(texts: list[str], labels: list[str], train: list[int], held: list[int]) -> float:
    """Return the held-out accuracy of TF-IDF with logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000))
    model.fit([texts[i] for i in train], [labels[i] for i in train])
    return float(model.score([texts[i] for i in held], [labels[i] for i in held]))


def run(args: argparse.Namespace) -> list[dict[str, object]]:
    """Train and measure, and return one row per method and seed."""
    texts, labels = docstrings()
    model = args.model
    if model is None and any(name.startswith("full") for name in args.methods):
        model = str(Path(args.work) / "unpacked")
        if not Path(model).exists():
            from mlx_qwen3.bundled import bundled_model_path

            q.convert(bundled_model_path(), model, dequantize=True, dtype="float32", report=False)
    rows: list[dict[str, object]] = []
    has_sklearn = find_spec("sklearn") is not None
    if not has_sklearn:
        print("scikit-learn is not installed: TF-IDF with logistic regression is skipped", flush=True)
    for seed in range(args.seeds):
        for size in args.sizes:
            train, held = split(labels, seed, size)
            data = [texts[i] for i in train], [labels[i] for i in train]
            test = [texts[i] for i in held], [labels[i] for i in held]
            if has_sklearn:
                accuracy = tfidf(texts, labels, train, held)
                rows.append({"method": "TF-IDF", "seed": seed, "rows": len(train), "accuracy": accuracy})
                print(json.dumps(rows[-1]), flush=True)
            for name in args.methods:
                method, _, pooling = name.partition("/")
                started = time.perf_counter()
                rates = {"full": args.full_rate, "lora": args.lora_rate, "dora": args.lora_rate}
                classifier = q.TextClassifier(
                    model,
                    method=method,
                    pooling=pooling or "auto",
                    epochs=args.epochs,
                    batch_size=args.batch_size,
                    learning_rate=rates.get(method),
                    dropout=args.dropout if method == "lora" else 0.0,
                    random_state=seed,
                )
                classifier.fit(*data, eval_set=test)
                row: dict[str, object] = {"method": name, "seed": seed, "rows": len(train)}
                log = [entry for entry in classifier.report_.log if "evaluation" in entry]
                row["curve"] = [[entry["step"], entry["evaluation"]["accuracy"]] for entry in log]
                # use the weights of the last step: the best ones were selected on the held-out rows
                row["accuracy"] = log[-1]["evaluation"]["accuracy"] if log else classifier.score(*test)
                row["seconds"] = time.perf_counter() - started
                rows.append(row)
                print(json.dumps(row), flush=True)
    return rows


def curve(args: argparse.Namespace) -> list[dict[str, object]]:
    """Return the held-out accuracy of the frozen head for several numbers of examples per label."""
    from mlx_qwen3.training.fitting import load_base
    from mlx_qwen3.training.frozen_features import embed, fit_head
    from mlx_qwen3.training.objectives import Example

    texts, labels = docstrings()
    base = load_base(args.model, "text-classification", "head", None, num_labels=len(MODULES))
    ids = base.tokenizer(texts)["input_ids"]
    features = embed(base.model, ids)
    targets = [MODULES.index(label) for label in labels]
    rows: list[dict[str, object]] = []
    for seed in range(args.seeds):
        for size in (1, 2, 4, 8, 16, None):
            train, held = split(labels, seed, size)
            examples = [Example(ids[i], targets[i]) for i in train]
            chosen = {name: array[train] for name, array in features.items()}
            pooling, head = fit_head(chosen, examples, "single_label_classification", len(MODULES), "auto", seed)
            found = (features[pooling][held] @ head.weight.T).argmax(1) == np.array(targets)[held]
            rows.append({"method": "head", "seed": seed, "rows": len(train), "accuracy": float(found.mean())})
            if find_spec("sklearn") is not None:
                plain = tfidf(texts, labels, train, held)
                rows.append({"method": "TF-IDF", "seed": seed, "rows": len(train), "accuracy": plain})
    return rows


def table(rows: list[dict[str, object]]) -> str:
    """Return the accuracies per method and number of rows, as a Markdown table."""
    groups: dict[tuple[object, object], list[float]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["rows"]), []).append(float(str(row["accuracy"])))
    lines = ["| method | rows | accuracy, mean | each seed |", "|---|---|---|---|"]
    for (method, count), found in sorted(
        groups.items(), key=lambda group: (str(group[0][1]).zfill(6), str(group[0][0]))
    ):
        each = ", ".join(f"{value:.3f}" for value in found)
        lines.append(f"| {method} | {count} | {np.mean(found):.3f} | {each} |")
    return "\n".join(lines)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: the bundled model")
    parser.add_argument("--methods", nargs="+", default=["head", "lora", "lora/mean", "full/mean"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lora-rate", type=float, default=1e-3)
    parser.add_argument("--full-rate", type=float, default=1e-4)
    parser.add_argument("--dropout", type=float, default=0.0, help="dropout of LoRA")
    parser.add_argument("--sizes", nargs="+", type=int, default=[None], help="training rows per label (default: all)")
    parser.add_argument("--output", type=Path, help="write every row as JSON")
    parser.add_argument("--curve", action="store_true", help="the few-shot curve of the frozen head")
    parser.add_argument("--work", default="build", help="folder for the unpacked model")
    args = parser.parse_args()
    rows = curve(args) if args.curve else run(args)
    print(table(rows))
    if args.output is not None:
        args.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
