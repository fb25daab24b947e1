"""`mlx-qwen3 train`: fine-tune a model on a file of your own."""

import argparse
import logging
import shlex
import sys
from typing import Any

from ..errors import InputError
from .convert import DTYPES
from .model_flags import add_gguf_file_flag, add_revision_flag, check_revision, name_gguf_file

TASKS = ("text-classification", "token-classification", "question-answering", "text-generation")
METHODS = ("head", "lora", "dora", "full")


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the verb and its flags."""
    parser = subparsers.add_parser(
        "train",
        help="fine-tune a model on your own data",
        description="Fine-tune a Qwen3 on csv, tsv, jsonl, json, parquet or CoNLL files. 'head' and 'full' write a "
        "checkpoint, 'lora' and 'dora' an adapter that PEFT loads as well.",
    )
    parser.add_argument("--task", choices=TASKS, required=True, help="what the model learns")
    parser.add_argument("--data", required=True, help="a file, or a folder with train.jsonl and perhaps valid.jsonl")
    parser.add_argument("--output", required=True, help="the folder to write")
    parser.add_argument("--model", help="a folder or Hub repository (default: the bundled small model)")
    add_revision_flag(parser)
    add_gguf_file_flag(parser)
    parser.add_argument("--valid", help="a file of held-out rows (default: a tenth of 50 rows or more)")
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="head",
        help="head: a linear head on frozen features, in one pass (default); lora, dora: an adapter; full: all weights",
    )
    data = parser.add_argument_group("data")
    data.add_argument("--text-column", default="text", help="column of the texts (text)")
    data.add_argument("--label-column", default="label", help="column of the labels (label)")
    data.add_argument("--regression", action="store_true", help="the labels are numbers to predict")
    data.add_argument("--mask-prompt", action="store_true", help="only completions count, or last messages")
    data.add_argument("--max-length", type=int, metavar="N", help="tokens of a row; longer ones are cut")
    data.add_argument("--validation-split", type=float, default=0.1, metavar="X", help="share that is held out (0.1)")
    data.add_argument("--class-weights", metavar="balanced|LABEL=W,…", help="weights of rare labels in the loss")
    data.add_argument(
        "--pooling",
        choices=("auto", "last", "mean"),
        default="auto",
        help="what the head sees: the last token or the mean over the tokens; auto compares them for --method head",
    )
    steps = parser.add_argument_group("training")
    steps.add_argument("--epochs", type=int, metavar="N", help="passes over the data (3)")
    steps.add_argument("--max-steps", type=int, metavar="N", help="fewer steps than the epochs have")
    steps.add_argument("--batch-size", type=int, metavar="N", help="rows per minibatch (16)")
    steps.add_argument("--accumulation", type=int, metavar="N", help="minibatches per step (1)")
    steps.add_argument("--learning-rate", type=float, metavar="X", help="its peak (5e-4; full: 5e-5)")
    steps.add_argument("--schedule", choices=("cosine", "linear", "constant"), help="after the warm-up (cosine)")
    steps.add_argument("--warmup", type=float, metavar="X", help="share of the steps in which the rate rises (0.1)")
    steps.add_argument("--weight-decay", type=float, metavar="X", help="of matrices (0.01)")
    steps.add_argument("--clip", type=float, metavar="X", help="largest norm of the gradient; 0 for none (1)")
    steps.add_argument("--rank", type=int, metavar="N", help="of LoRA (8)")
    steps.add_argument("--alpha", type=float, metavar="X", help="LoRA is scaled by alpha / rank (16)")
    steps.add_argument("--dropout", type=float, metavar="X", help="of LoRA's input (0)")
    steps.add_argument("--targets", metavar="NAME,…", help="layers that LoRA adapts (every linear layer of a block)")
    steps.add_argument("--evaluate-every", type=int, metavar="N", help="steps between evaluations (an epoch)")
    steps.add_argument("--patience", type=int, metavar="N", help="evaluations without a better loss before the end")
    steps.add_argument("--save-every", type=int, metavar="N", help="steps between states to resume from (50)")
    steps.add_argument("--grad-checkpoint", action="store_true", help="less memory, about a third more time")
    steps.add_argument("--dtype", choices=DTYPES, help="what to compute in")
    steps.add_argument("--seed", type=int, metavar="N", help="makes the result repeatable (0)")
    steps.add_argument("--resume", action="store_true", help="go on with an interrupted training of the same data")
    parser.add_argument("--force", action="store_true", help="replace the output where it exists")
    parser.set_defaults(run=run)
    return parser


OPTIONS = (
    *("max_length", "epochs", "max_steps", "batch_size", "accumulation", "learning_rate", "schedule", "warmup"),
    *("weight_decay", "clip", "rank", "alpha", "dropout", "evaluate_every", "patience", "save_every", "seed"),
)


def run(args: argparse.Namespace) -> int:
    """Train, print the report, and return the exit status."""
    from ..training import train

    check_revision(args)
    name_gguf_file(args)
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
            class_weights=_class_weights(args.class_weights),
            grad_checkpoint=args.grad_checkpoint,
            **options,
        )
    except KeyboardInterrupt:
        bar.close()
        print("interrupted. The same command with --resume goes on from the last saved state", file=sys.stderr)
        return 130
    bar.close()
    print(report)
    print(f"written to {args.output}")
    return 0


def _class_weights(text: str | None) -> Any:
    if text is None or text == "balanced":
        return text
    weights = {}
    for part in text.split(","):
        label, found, weight = part.rpartition("=")
        try:
            weights[label.strip()] = float(weight)
        except ValueError:
            found = ""
        if not found:
            raise InputError(f"--class-weights is {text!r}, expected 'balanced' or LABEL=WEIGHT,LABEL=WEIGHT")
    return weights


class TrainingBar:
    """Steps, loss, tokens per second and the time left, on standard error; nothing where that is no terminal."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._what = ""

    def __call__(self, row: dict[str, Any]) -> None:
        """Show a row of the log."""
        if "embedded" in row:
            self._show("embedding", row["embedded"], row["total"])
        elif "loss" in row:
            self._show("training", row["step"], row["total"])
            self._bar.set_postfix_str(f"loss {row['loss']:.4f}, {row['tokens_per_second']:,.0f} tokens/s")
        elif "evaluation" in row and self._bar is not None:
            figures = row["evaluation"]
            shown = ", ".join(f"{n} {v:.4f}" for n, v in figures.items() if isinstance(v, int | float))
            self._bar.write(f"step {row['step']}: held-out {shown}", file=sys.stderr)

    def _show(self, what: str, done: int, total: int) -> None:
        if what != self._what:
            from tqdm import tqdm

            self.close()
            self._bar, self._what = tqdm(total=total, desc=what, disable=None), what
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """End the line."""
        if self._bar is not None:
            self._bar.close()
