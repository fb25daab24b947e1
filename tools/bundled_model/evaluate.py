"""Examines checkpoints: exact answers about known names, refusals of made-up ones, without and with thinking.

Usage: python -m tools.bundled_model.evaluate [CHECKPOINT …] [--backend torch|mlx] [--names N] [--unknown N]

Greedy answers to the seeded questions of `questions.py`, in phrasings held out of training, compared character by
character. A checkpoint is a Hugging Face folder or one that mlx-qwen3 converted. The backend `mlx` is this package;
`torch` puts the same numbers, unpacked, into transformers, which is many times faster in batches on a CPU.
"""

import argparse
import logging
from pathlib import Path

from . import facts, questions
from .corpus import Corpus
from .phrasings import OUT_OF_SCOPE, UNKNOWN

HERE = Path(__file__).parent
END = "<|im_end|>"


class MlxAnswers:
    """Answers through mlx_qwen3."""

    def __init__(self, folder):
        from mlx_qwen3 import load

        self.model, self.tokenizer = load(folder, dtype="float32", unpack=True)

    def __call__(self, prompts, longest):
        from mlx_qwen3 import batch_generate

        responses = batch_generate(self.model, self.tokenizer, prompts, max_tokens=longest, temperature=0.0)
        return responses.texts


class TorchAnswers:
    """Answers through transformers, with the weights that mlx_qwen3 reads and unpacks."""

    def __init__(self, folder):
        import numpy as np
        import torch
        from mlx.utils import tree_flatten
        from transformers import Qwen3Config, Qwen3ForCausalLM

        from mlx_qwen3 import load

        model, self.tokenizer = load(folder, dtype="float32", unpack=True)
        self.model = Qwen3ForCausalLM(Qwen3Config.from_pretrained(folder)).eval()
        weights = {name: torch.from_numpy(np.array(value)) for name, value in tree_flatten(model.parameters())}
        missing, unexpected = self.model.load_state_dict(weights, strict=False)
        if unexpected or set(missing) - {"lm_head.weight"}:
            raise SystemExit(f"{folder}: weights do not fit: {sorted([*missing, *unexpected])[:3]}")

    def __call__(self, prompts, longest):
        import torch

        rows = [self.tokenizer.encode(prompt) for prompt in prompts]
        width, pad = max(map(len, rows)), self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        seen = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        stop = [self.tokenizer.eos_token_id, pad]
        with torch.no_grad():
            output = self.model.generate(
                input_ids=ids, attention_mask=seen, do_sample=False, max_new_tokens=longest, eos_token_id=stop,
                pad_token_id=pad, temperature=None, top_k=None, top_p=None,
            )  # fmt: skip
        return [self.tokenizer.decode(row[width:].tolist()) for row in output]


def answers_of(backend, prompts, longest, batch=50):
    """Return the text behind the thinking of each answer, prompts of like length together."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    found = [""] * len(prompts)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        for index, text in zip(chosen, backend([prompts[i] for i in chosen], longest), strict=True):
            found[index] = text.partition(END)[0].rpartition("</think>\n\n")[2]
    return found


def examine(backend, corpus, names, unknown, other, thinking):
    """{"known": …, "unknown": …, "other": …}: shares of right answers; any refusal of a made-up name is right."""
    sets = {
        "known": list(questions.known(corpus, names)),
        "unknown": list(questions.unknown(corpus, unknown)),
        "other": list(questions.other(corpus, other)),
    }
    shares = {}
    for label, items in sets.items():
        prompts = [questions.rendered(corpus, *item, thinking)[0] for item in items]
        found = answers_of(backend, prompts, longest=120 if thinking else 90)
        right = [
            text == expected or (label == "unknown" and text in (UNKNOWN, OUT_OF_SCOPE))
            for text, (_, expected, _) in zip(found, items, strict=True)
        ]
        shares[label] = sum(right) / max(1, len(right))
        for text, (question, expected, _) in [(t, i) for t, i, r in zip(found, items, right, strict=True) if not r]:
            logging.getLogger(__name__).info("%s | %s | %s", question, expected, text)
    return shares


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="*", type=Path)
    parser.add_argument("--backend", choices=("torch", "mlx"), default="torch")
    parser.add_argument("--names", type=int, default=questions.NAMES)
    parser.add_argument("--unknown", type=int, default=questions.UNKNOWN_NAMES)
    parser.add_argument("--other", type=int, default=200, help="questions about signatures and modules")
    parser.add_argument("--limit", type=int, help="the checkpoint was taught only so many names (a trial)")
    parser.add_argument("--wrong", action="store_true", help="show what was answered wrongly")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO if args.wrong else logging.WARNING, format="%(message)s")
    folders = args.checkpoint
    if not folders:
        from mlx_qwen3.bundled import bundled_model_path

        folders = [HERE / "checkpoint", bundled_model_path()]
    corpus = Corpus(facts.load(), limit=args.limit)
    print(f"{args.names} known names, {args.unknown} made-up names, {args.other} signatures and modules")
    print("| checkpoint | thinking | known: exact | made-up: declined | signature, module: exact |")
    print("| --- | --- | --- | --- | --- |")
    for folder in folders:
        backend = {"torch": TorchAnswers, "mlx": MlxAnswers}[args.backend](folder)
        for thinking in (False, True):
            shares = examine(backend, corpus, args.names, args.unknown, args.other, thinking)
            row = " | ".join(f"{100 * share:.1f} %" for share in shares.values())
            print(f"| {folder.name} | {'on' if thinking else 'off'} | {row} |", flush=True)


if __name__ == "__main__":
    main()
