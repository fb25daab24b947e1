"""Compare training speed and memory on random weights with mlx_lm.lora and with transformers and PEFT.

    python benchmarks/train.py [--size 0.6B|small|tiny] [--rounds 3] [--steps 32] [--output FILE]

1. LoRA on text generation: steps per second and peak memory of this package and of mlx-lm's trainer, with the same
   weights, rows, batch size, rank, scale and layers, AdamW, and without gradient checkpointing.
2. LoRA on sequence classification: the same figures for this package and for transformers + PEFT on PyTorch, in
   bfloat16.
3. A head on frozen features of 10,000 texts of 64 tokens, compared with embedding them once.

Rounds are interleaved, and figures are medians of the rounds. Row lengths are random, from half to the full length.
"""

import argparse
import contextlib
import gc
import io
import json
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_qwen3 import Qwen3Config, Qwen3ForSequenceClassification
from mlx_qwen3.adapters import add_adapter
from mlx_qwen3.bench.mlx_lm_reference import mlx_lm_model
from mlx_qwen3.bench.random_models import SIZES, random_model
from mlx_qwen3.training.frozen_features import embed, fit_head
from mlx_qwen3.training.objectives import Example, LanguageObjective, SequenceObjective
from mlx_qwen3.training.options import TrainingOptions
from mlx_qwen3.training.trainer import Trainer

RANK, SCALE = 8, 2.0
KEYS = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
ROWS_IN_BATCHES = 16
WARM_UP = ROWS_IN_BATCHES + 1
"""Steps of one epoch, after which both implementations have compiled every shape."""


def rows(count: int, length: int, vocabulary: int, seed: int = 0) -> list[list[int]]:
    """Return `count` rows of random ids, with lengths from half to the full `length`."""
    rng = np.random.default_rng(seed)
    return [rng.integers(5, vocabulary, rng.integers(length // 2, length + 1)).tolist() for _ in range(count)]


def reset() -> None:
    """Release the memory of earlier runs, which MLX and PyTorch keep in their caches."""
    gc.collect()
    mx.synchronize()
    mx.clear_cache()
    mx.reset_peak_memory()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def run_own(model: Any, objective: Any, examples: list[Example], args: argparse.Namespace) -> dict[str, float]:
    """Return steps per second, peak memory and last loss of this package's trainer."""
    mx.random.seed(0)
    add_adapter(model, r=RANK, alpha=RANK * SCALE)
    options = TrainingOptions(method="lora", batch_size=args.batch, epochs=1000, max_steps=args.steps + WARM_UP)
    times: list[float] = []
    names = model.adapter.names
    trainer = Trainer(
        model, names, objective, examples, [], options, progress=lambda row: times.append(time.perf_counter())
    )
    reset()
    state = trainer.run()
    mx.eval(state.parameters)
    return {
        "steps_per_second": (len(times) - WARM_UP) / (times[-1] - times[WARM_UP - 1]),
        "peak_bytes": float(mx.get_peak_memory()),
        "last_loss": float(state.log[-1]["loss"]),
    }


def run_own_on_text(args: argparse.Namespace, data: list[list[int]]) -> dict[str, float]:
    """Run this package's trainer on text generation."""
    model = random_model(args.size, args.mlx_dtype)
    return run_own(model, LanguageObjective(), [Example(ids, 1) for ids in data], args)


def run_mlx_lm_on_text(args: argparse.Namespace, data: list[list[int]]) -> dict[str, float]:
    """Run mlx-lm's trainer on the same weights and rows."""
    import mlx.optimizers as optimizers
    from mlx_lm.tuner.trainer import TrainingArgs, TrainingCallback, train
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model = mlx_lm_model(random_model(args.size, args.mlx_dtype))
    mx.random.seed(0)
    model.freeze()
    linear_to_lora_layers(model, -1, {"rank": RANK, "scale": SCALE, "dropout": 0.0, "keys": KEYS})
    times: list[float] = []
    losses: list[float] = []

    class Record(TrainingCallback):
        def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
            times.append(time.perf_counter())
            losses.append(float(train_info["train_loss"]))

    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArgs(
            batch_size=args.batch,
            iters=args.steps + WARM_UP,
            val_batches=0,
            steps_per_report=1,
            steps_per_save=10**9,
            max_seq_length=args.length + 33,
            adapter_file=str(Path(folder) / "adapters.safetensors"),
        )
        reset()
        optimizer = optimizers.AdamW(learning_rate=5e-4)
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):  # hides its progress bar
            train(model, optimizer, [(ids, 0) for ids in data], args=settings, training_callback=Record())
    return {
        "steps_per_second": (len(times) - WARM_UP) / (times[-1] - times[WARM_UP - 1]),
        "peak_bytes": float(mx.get_peak_memory()),
        "last_loss": losses[-1],
    }


def classifier(args: argparse.Namespace) -> Any:
    """Return a random sequence classifier with 4 labels."""
    mx.random.seed(0)
    model = Qwen3ForSequenceClassification(Qwen3Config(**SIZES[args.size], num_labels=4, pad_token_id=0))
    model.set_dtype(args.mlx_dtype)
    mx.eval(model.parameters())
    return model


def run_own_on_labels(args: argparse.Namespace, data: list[list[int]]) -> dict[str, float]:
    """Run this package's trainer on sequence classification."""
    examples = [Example(ids, index % 4) for index, ids in enumerate(data)]
    return run_own(classifier(args), SequenceObjective(), examples, args)


def run_peft_on_labels(args: argparse.Namespace, data: list[list[int]]) -> dict[str, float]:
    """Run transformers + PEFT on the same shape, rows and batches, padded to the longest row of a batch."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3Config as TheirConfig
    from transformers import Qwen3ForSequenceClassification as TheirModel

    from mlx_qwen3.training.trainer import plan_batches

    device = "cuda" if torch.cuda.is_available() else "cpu"
    fields = {**SIZES[args.size], "num_labels": 4, "pad_token_id": 0}
    torch.manual_seed(0)
    model = TheirModel(TheirConfig(**fields)).to(device, getattr(torch, args.dtype))
    names = [key.rpartition(".")[2] for key in KEYS]
    lora = LoraConfig(task_type="SEQ_CLS", r=RANK, lora_alpha=RANK * SCALE, target_modules=names)
    model = get_peft_model(model, lora).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-4, weight_decay=0.01)
    reset()
    times: list[float] = []
    epoch, batches = 0, []
    for _ in range(args.steps + WARM_UP):
        if not batches:
            batches, epoch = plan_batches([len(ids) for ids in data], args.batch, 0, epoch), epoch + 1
        chosen = batches.pop(0)
        width = max(len(data[row]) for row in chosen)
        ids = torch.zeros((len(chosen), width), dtype=torch.long)
        for position, row in enumerate(chosen):
            ids[position, : len(data[row])] = torch.tensor(data[row])
        ids = ids.to(device)
        labels = torch.tensor([row % 4 for row in chosen], device=device)
        loss = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        last = float(loss.detach())
        times.append(time.perf_counter())
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return {
        "steps_per_second": (len(times) - WARM_UP) / (times[-1] - times[WARM_UP - 1]),
        "peak_bytes": float(peak),
        "last_loss": last,
    }


def head(args: argparse.Namespace) -> dict[str, float]:
    """Return the seconds to embed texts once, and the seconds to embed them and fit a head."""
    model = classifier(args)
    rng = np.random.default_rng(0)
    texts = [rng.integers(5, model.config.vocab_size, 64).tolist() for _ in range(args.texts)]
    examples = [Example(ids, index % 4) for index, ids in enumerate(texts)]
    embed(model, texts[: min(len(texts), 1024)])  # compiles the shapes that both runs use
    started = time.perf_counter()
    features = embed(model, texts)
    embedded = time.perf_counter()
    fit_head(features, examples, "single_label_classification", 4, "auto", 0)
    finished = time.perf_counter()
    return {"embedding_seconds": embedded - started, "head_seconds": finished - started}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="0.6B")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=32, help="measured steps, after one warm-up epoch of 16 steps")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--only", nargs="+", choices=("text", "labels", "head"), default=["text", "labels", "head"])
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    args.mlx_dtype = {"bfloat16": mx.bfloat16, "float32": mx.float32}[args.dtype]
    data = rows(args.batch * ROWS_IN_BATCHES, args.length, SIZES[args.size]["vocab_size"])
    sides: dict[str, Any] = {}
    if "text" in args.only:
        sides |= {"text/mlx_qwen3": run_own_on_text, "text/mlx_lm": run_mlx_lm_on_text}
    if "labels" in args.only:
        sides["labels/mlx_qwen3"] = run_own_on_labels
        missing = [name for name in ("torch", "transformers", "peft") if find_spec(name) is None]
        if missing:
            print(f"not installed: {', '.join(missing)}. Sequence classification is measured without PEFT")
        else:
            sides["labels/peft"] = run_peft_on_labels
    found: dict[str, list[dict[str, float]]] = {}
    for number in range(args.rounds):
        for name, side in sides.items():
            result = side(args, data)
            reset()
            found.setdefault(name, []).append(result)
            print(f"round {number}, {name}: {json.dumps(result)}", flush=True)
        if "head" in args.only:
            found.setdefault("head", []).append(head(args))
            reset()
            print(f"round {number}, head: {json.dumps(found['head'][-1])}", flush=True)
    medians = {
        name: {key: statistics.median(result[key] for result in results) for key in results[0]}
        for name, results in found.items()
    }
    print(f"\n{args.size}, {args.dtype}, batches of {args.batch} rows of {args.length // 2} to {args.length} tokens")
    print(
        f"mlx {version('mlx')}, mlx-lm {version('mlx-lm')}, Python {platform.python_version()}, {mx.default_device()}"
    )
    print("| | steps/s | peak memory, GB |\n|---|---|---|")
    for name, values in medians.items():
        if "steps_per_second" in values:
            print(f"| {name} | {values['steps_per_second']:.2f} | {values['peak_bytes'] / 1e9:.2f} |")
    for kind, other in (("text", "mlx_lm"), ("labels", "peft")):
        a, b = medians.get(f"{kind}/mlx_qwen3"), medians.get(f"{kind}/{other}")
        if a and b:
            print(f"{kind}: {a['steps_per_second'] / b['steps_per_second']:.2f} × the steps per second of {other}")
            if b["peak_bytes"]:  # PyTorch reports it on CUDA only
                print(f"{kind}: {a['peak_bytes'] / b['peak_bytes']:.2f} × the peak memory of {other}")
    if "head" in medians:
        values = medians["head"]
        share = values["head_seconds"] / values["embedding_seconds"]
        print(f"head: {values['head_seconds']:.2f} s, {share:.2f} × embedding {args.texts} texts of 64 tokens once")
    if args.output is not None:
        args.output.write_text(json.dumps({"rounds": found, "medians": medians}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
