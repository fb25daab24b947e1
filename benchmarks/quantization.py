"""Measure the loss of each quantization recipe on the bundled model: size, bits per weight, divergence and accuracy.

    python -m benchmarks.quantization [CHECKPOINT] [--questions 90] [--only NAME ...] [--torch]

Convert the unquantized checkpoint with each recipe into a temporary folder, and compare both on the bundled model's
test set: questions in phrasings held out of training, with their answers. Only the tokens of the answers are compared.
"exact answers" is the share of questions for which greedy decoding gives the exact answer. The sensitivity of layers,
for the target recipes, is measured on other conversations.

With --torch the converted weights run in transformers, unpacked to float32. The figures then describe the weights only,
and take minutes instead of hours on a CPU without a fast MLX.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

import mlx_qwen3
from mlx_qwen3 import convert
from mlx_qwen3.quantization.quality import Sample, compare_models

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
    """Return test pairs (prompt, completion) and calibration pairs.

    The test pairs ask about known names, made-up names and other topics in equal parts.
    """
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


def samples_of(tokenizer, pairs):
    encode = lambda text: list(tokenizer.encode(text, add_special_tokens=False))  # noqa: E731
    return [Sample([*encode(prompt), *encode(answer)], len(encode(prompt))) for prompt, answer in pairs]


class TorchQwen3ForCausalLM:
    """transformers' model with the weights of a converted folder in float32, and this package's interface."""

    def __init__(self, folder):
        import torch
        from transformers import Qwen3Config, Qwen3ForCausalLM

        torch.set_num_threads(1)
        model = mlx_qwen3.Qwen3ForCausalLM.from_pretrained(folder, dtype="float32", unpack=True)
        self.torch = torch
        self.model = Qwen3ForCausalLM(Qwen3Config(**json.loads((folder / "config.json").read_text()))).eval()
        weights = {name: torch.from_numpy(np.array(array)) for name, array in tree_flatten(model.parameters())}
        missing, unexpected = self.model.load_state_dict(weights, strict=False)
        assert not unexpected
        assert set(missing) <= {"lm_head.weight"}

    def __call__(self, input_ids):
        with self.torch.no_grad():
            logits = self.model(input_ids=self.torch.from_numpy(np.array(input_ids)).long()).logits
        return {"logits": mx.array(logits.numpy())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", type=Path, default=BUNDLED)
    parser.add_argument("--questions", type=int, default=90, help="number of test questions")
    parser.add_argument("--calibration", type=int, default=12, help="conversations to measure layers on")
    parser.add_argument("--only", nargs="*", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--torch", action="store_true", help="run the weights in transformers (the extra `reference`)")
    args = parser.parse_args()
    if args.questions < 3:
        parser.error(f"--questions is {args.questions}, expected at least 3. Each of the three topics needs a question")
    pairs, calibration = conversations(args.questions, args.calibration)
    on_cpu = mx.default_device().type == mx.DeviceType.cpu

    def loaded(folder):
        return TorchQwen3ForCausalLM(folder) if args.torch else mlx_qwen3.load(folder, unpack=on_cpu)[0]

    samples = samples_of(mlx_qwen3.AutoTokenizer.from_pretrained(args.checkpoint), pairs)
    reference = loaded(args.checkpoint)
    where = "transformers, float32" if args.torch else f"{mx.default_device()}"
    print(f"MLX {mx.__version__}, {where}, {platform.machine()}, {time.strftime('%Y-%m-%d')}, ", end="")
    print(f"{len(samples)} questions, {sum(len(s.ids) - s.start for s in samples)} answer tokens")
    print(
        "| recipe | MB | bits per weight | KL mean | KL median | KL p99 | same top token | perplexity | exact answers |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "calibration.jsonl"
        lines = (json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in calibration)
        file.write_text("\n".join(lines), encoding="utf-8")
        for number, name in enumerate(args.only):
            folder = Path(temporary) / str(number)
            options = RECIPES[name] | ({"calibration_text": file} if "target_bpw" in RECIPES[name] else {})
            done = convert(args.checkpoint, folder, report=False, **options)
            quality = compare_models(reference, loaded(folder), samples)
            kl = quality["kl_divergence"]
            print(
                f"| {name} | {done.bytes_out / 1e6:.2f} | {done.bits_per_weight:.2f} | {kl['mean']:.6f} "
                f"| {kl['median']:.7f} | {kl['p99']:.5f} | {quality['top1_agreement']:.2%} "
                f"| {quality['perplexity']['converted']:.5f} | {quality['exact_answers']['converted']:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
