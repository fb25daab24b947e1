"""What each quantization recipe costs on the bundled model: size, bits per weight, divergence, agreement, its task.

    python benchmarks/quantization.py [CHECKPOINT] [--questions 90] [--only NAME ...]

Converts the unquantized checkpoint with each recipe into a temporary folder, with the converter's own report on the
bundled model's examination: questions in phrasings held out of training, with their answers. The answers' tokens
count; the task is the share of questions whose exact answer is the greedy one. Layers for the target recipes are
measured on other conversations.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import mlx.core as mx

from mlx_qwen3 import convert

BUNDLED = Path(__file__).parent.parent / "tools" / "bundled_model" / "checkpoint"

RECIPES = {
    "bf16": {},
    "8-bit": {"quantize": True, "q_bits": 8},
    "mxfp8": {"quantize": True, "q_mode": "mxfp8"},
    "6-bit": {"quantize": True, "q_bits": 6},
    "5-bit": {"quantize": True, "q_bits": 5},
    "target 5.0": {"target_bpw": 5.0},
    "4-bit, groups of 32": {"quantize": True, "q_bits": 4, "q_group_size": 32},
    "mixed_4_6": {"quantize": True, "quant_predicate": "mixed_4_6"},
    "target 4.5": {"target_bpw": 4.5},
    "4-bit": {"quantize": True, "q_bits": 4},
    "nvfp4": {"quantize": True, "q_mode": "nvfp4"},
    "mxfp4": {"quantize": True, "q_mode": "mxfp4"},
    "mixed_3_6": {"quantize": True, "quant_predicate": "mixed_3_6"},
    "3-bit": {"quantize": True, "q_bits": 3},
}


def conversations(count, calibration=24):
    """(prompt, completion) pairs to report on, known names, made-up names and others evenly; and to calibrate on."""
    from tools.bundled_model import facts, questions, tokenizer
    from tools.bundled_model.corpus import Corpus

    corpus = Corpus(facts.load())
    share = count // 3
    sets = (
        questions.known(corpus, share),
        questions.unknown(corpus, share),
        questions.other(corpus, count - 2 * share),
    )
    pairs = [questions.rendered(corpus, *item, thinking=False) for group in sets for item in group]
    return pairs, [tokenizer.render(corpus.sample("calibration", index)) for index in range(calibration)]


def write_pairs(file, pairs):
    lines = (json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in pairs)
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", type=Path, default=BUNDLED)
    parser.add_argument("--questions", type=int, default=90, help="of the examination")
    parser.add_argument("--only", nargs="*", choices=list(RECIPES), default=list(RECIPES))
    args = parser.parse_args()
    pairs, calibration = conversations(args.questions)
    print(f"MLX {mx.__version__}, {mx.default_device()}, {platform.machine()}, {time.strftime('%Y-%m-%d')}, ", end="")
    print(f"{args.questions} questions")
    print(
        "| recipe | MB | bits a weight | KL mean | KL median | KL p99 | same top token | perplexity | exact answers |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        report = write_pairs(Path(temporary) / "report.jsonl", pairs)
        other = write_pairs(Path(temporary) / "calibration.jsonl", calibration)
        for number, name in enumerate(args.only):
            folder = Path(temporary) / str(number)
            options = RECIPES[name]
            done = convert(args.checkpoint, folder, report=True, report_text=report, calibration_text=other, **options)
            quality = done.quality
            kl = quality["kl_divergence"]
            print(
                f"| {name} | {done.bytes_out / 1e6:.2f} | {done.bits_per_weight:.2f} | {kl['mean']:.6f} "
                f"| {kl['median']:.7f} | {kl['p99']:.5f} | {quality['top1_agreement']:.2%} "
                f"| {quality['perplexity']['converted']:.5f} | {quality['exact_answers']['converted']:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
