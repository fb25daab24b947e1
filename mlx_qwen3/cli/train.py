"""`mlx-qwen3 train`: fine-tune a model on your own data."""

import argparse
import logging
import shlex
import sys
from typing import Any

from ..errors import InputError
from .convert import DTYPES
from .model_flags import add_gguf_file_flag, add_revision_flag, check_revision, resolve_gguf_file
from .progress import StageProgress

TASKS = ("text-classification", "token-classification", "question-answering", "text-generation")
METHODS = ("head", "lora", "dora", "full")


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the verb and its flags."""
    parser = subparsers.add_parser(
        "train",
        help="fine-tune a model on your own data",
        description="Fine-tune a Qwen3 model on csv, tsv, jsonl, json, parquet or CoNLL files. The methods head and "
        "full write a checkpoint, lora and dora an adapter in the format of PEFT.",
    )
    parser.add_argument("--task", choices=TASKS, required=True, help="task to train for")
    parser.add_argument("--data", required=True, help="file, or folder with train.jsonl and optionally valid.jsonl")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--model", help="folder or Hub repository (default: the bundled small model)")
    add_revision_flag(parser)
    add_gguf_file_flag(parser)
    parser.add_argument(
        "--valid", help="file with the validation rows (default: --validation-split of the data, from 50 rows on)"
    )
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="head",
        help="head: linear head on frozen features, in one pass (default); lora, dora: adapter; full: all weights",
    )
    data = parser.add_argument_group("data")
    data.add_argument("--text-column", default="text", help="column of the texts (default: text)")
    data.add_argument("--label-column", default="label", help="column of the labels (default: label)")
    data.add_argument("--regression", action="store_true", help="treat the labels as numbers to predict")
    data.add_argument(
        "--mask-prompt", action="store_true", help="compute the loss on completions, or on last messages, only"
    )
    data.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="maximum tokens per row; longer rows are cut (default: the context length, at most 384 for "
        "question-answering and 2048 for text-generation)",
    )
    data.add_argument(
        "--validation-split",
        type=float,
        default=0.1,
        metavar="X",
        help="fraction of the rows held out for validation (default: 0.1)",
    )
    data.add_argument(
        "--class-weights",
        metavar="balanced|LABEL=W,…",
        help="weights of the labels in the loss (default: equal weights)",
    )
    data.add_argument(
        "--pooling",
        choices=("auto", "last", "mean"),
        default="auto",
        help="input of the head: last token, or mean over the tokens; auto compares both for --method head",
    )
    steps = parser.add_argument_group("training")
    steps.add_argument("--epochs", type=int, metavar="N", help="passes over the data (default: 3)")
    steps.add_argument("--max-steps", type=int, metavar="N", help="stop after N steps, even within an epoch")
    steps.add_argument("--batch-size", type=int, metavar="N", help="rows per minibatch (default: 16)")
    steps.add_argument("--accumulation", type=int, metavar="N", help="minibatches per optimizer step (default: 1)")
    steps.add_argument(
        "--learning-rate", type=float, metavar="X", help="peak learning rate (default: 5e-4, or 5e-5 for full)"
    )
    steps.add_argument(
        "--schedule",
        choices=("cosine", "linear", "constant"),
        help="learning rate schedule after the warm-up (default: cosine)",
    )
    steps.add_argument(
        "--warmup", type=float, metavar="X", help="fraction of the steps used for warm-up (default: 0.1)"
    )
    steps.add_argument("--weight-decay", type=float, metavar="X", help="weight decay of the matrices (default: 0.01)")
    steps.add_argument("--clip", type=float, metavar="X", help="maximum gradient norm; 0 for no clipping (default: 1)")
    steps.add_argument("--rank", type=int, metavar="N", help="rank of LoRA (default: 8)")
    steps.add_argument("--alpha", type=float, metavar="X", help="LoRA updates are scaled by alpha / rank (default: 16)")
    steps.add_argument("--dropout", type=float, metavar="X", help="dropout on the input of LoRA (default: 0)")
    steps.add_argument(
        "--targets", metavar="NAME,…", help="layers that LoRA adapts (default: all linear layers of a block)"
    )
    steps.add_argument("--evaluate-every", type=int, metavar="N", help="steps between evaluations (default: one epoch)")
    steps.add_argument("--patience", type=int, metavar="N", help="stop after N evaluations without a better loss")
    steps.add_argument(
        "--save-every", type=int, metavar="N", help="steps between saved states, for --resume (default: 50)"
    )
    steps.add_argument(
        "--grad-checkpoint", action="store_true", help="recompute intermediates: less memory, about a third more time"
    )
    steps.add_argument(
        "--dtype",
        choices=DTYPES,
        help="computation dtype (default: float32 on a CPU and for --method full, else that of the model)",
    )
    steps.add_argument("--seed", type=int, metavar="N", help="random seed (default: 0)")
    steps.add_argument("--resume", action="store_true", help="continue an interrupted training on the same data")
    parser.add_argument("--force", action="store_true", help="replace an existing output")
    parser.set_defaults(run=run)
    return parser


OPTIONS = (
    *("max_length", "epochs", "max_steps", "batch_size", "accumulation", "learning_rate", "schedule", "warmup"),
    *("weight_decay", "clip", "rank", "alpha", "dropout", "evaluate_every", "patience", "save_every", "seed"),
)


def run(args: argparse.Namespace) -> int:
    """Train the model, print the report, and return the exit status."""
    from ..training import train
    from ..training.state import has_saved_state

    check_revision(args)
    resolve_gguf_file(args)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    options = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    if args.targets is not None:
        options["targets"] = tuple(name.strip() for name in args.targets.split(",") if name.strip())
    bar = TrainingBar()
    try:
        report = train(
            args.task,
            args.data,
            args.output,
            model=args.model,
            revision=args.revision,
            valid=args.valid,
            method=args.method,
            text_column=args.text_column,
            label_column=args.label_column,
            regression=args.regression,
            mask_prompt=args.mask_prompt,
            validation_split=args.validation_split,
            pooling=args.pooling,
            dtype=args.dtype,
            resume=args.resume,
            force=args.force,
            progress=bar,
            command=shlex.join(["mlx-qwen3", *sys.argv[1:]]),
            class_weights=_parse_class_weights(args.class_weights),
            grad_checkpoint=args.grad_checkpoint,
            **options,
        )
    except KeyboardInterrupt:
        bar.close()
        if has_saved_state(args.output):
            print(
                "interrupted. Run the same command with --resume to continue from the last saved state", file=sys.stderr
            )
        else:
            print("interrupted before the first saved state. Run the same command to start again", file=sys.stderr)
        return 130
    bar.close()
    print(report)
    print(f"written to {args.output}")
    return 0


def _parse_class_weights(text: str | None) -> Any:
    if text is None or text == "balanced":
        return text
    weights = {}
    for part in text.split(","):
        label, sign, weight = part.rpartition("=")
        try:
            weights[label.strip()] = float(weight)
        except ValueError:
            sign = ""
        if not sign:
            raise InputError(f"--class-weights is {text!r}, expected 'balanced' or LABEL=WEIGHT,LABEL=WEIGHT.")
    return weights


class TrainingBar(StageProgress):
    """Show steps, loss, tokens per second and the remaining time on standard error."""

    def __call__(self, row: dict[str, Any]) -> None:
        """Show a row of the training log."""
        if "embedded" in row:
            self.show("embedding", row["embedded"], row["total"])
        elif "loss" in row:
            note = f"loss {row['loss']:.4f}, {row['tokens_per_second']:,.0f} tokens/s"
            self.show("training", row["step"], row["total"], note)
        elif "evaluation" in row:
            figures = row["evaluation"]
            shown = ", ".join(f"{n} {v:.4f}" for n, v in figures.items() if isinstance(v, int | float))
            self.write(f"step {row['step']}: held-out {shown}")
