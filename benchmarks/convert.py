"""Compare conversion to affine 4-bit with mlx_lm.convert: peak memory, wall time and throughput.

Build a synthetic sharded bf16 Qwen3 checkpoint (at least 4 GB, or --size) in a temporary folder, convert it with each
tool in a separate process, and print a table. Run it on an idle machine:

    python benchmarks/convert.py [--size 4.0] [--shard-size 1.0] [--only ours|mlx-lm] [--folder DIR]
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlx.core as mx

from mlx_qwen3.checkpoint import CheckpointWriter

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 2048, 6144, 16, 8, 128, 151936
BOUND_FACTOR, BOUND_EXTRA = 4, 300e6

OURS = "import sys; from mlx_qwen3 import convert; convert(sys.argv[1], sys.argv[2], quantize=True, report=False)"
THEIRS = "import sys; from mlx_lm import convert; convert(sys.argv[1], sys.argv[2], quantize=True)"


def shapes(size: float) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a Qwen3 model of at least `size` bytes in bf16."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    layer = 0
    total = 2 * VOCAB * HIDDEN
    while 2 * total < size or layer < 1:
        prefix = f"model.layers.{layer}."
        block: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
            "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
            "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
            "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
            "mlp.up_proj": (INTERMEDIATE, HIDDEN),
            "mlp.down_proj": (HIDDEN, INTERMEDIATE),
            "self_attn.q_norm": (HEAD_DIM,),
            "self_attn.k_norm": (HEAD_DIM,),
            "input_layernorm": (HIDDEN,),
            "post_attention_layernorm": (HIDDEN,),
        }
        for name, shape in block.items():
            found[f"{prefix}{name}.weight"] = shape
            total += shape[0] * (shape[1] if len(shape) > 1 else 1)
        layer += 1
    found["model.norm.weight"] = (HIDDEN,)
    found["lm_head.weight"] = (VOCAB, HIDDEN)
    return found


def build(folder: Path, size: float, shard_size: float) -> tuple[int, int]:
    """Write the checkpoint, and return its size and the size of its largest tensor in bytes."""
    names = shapes(size)
    folder.mkdir(parents=True)
    writer = CheckpointWriter(
        folder, {n: (s, mx.bfloat16) for n, s in names.items()}, {"format": "pt"}, int(shard_size)
    )
    mx.random.seed(0)
    total = largest = 0
    for name, shape in names.items():
        rows = shape[0]
        for start in range(0, rows, 4096):
            part = (min(4096, rows - start), *shape[1:])
            written = writer.write_rows(name, start, (0.02 * mx.random.normal(part)).astype(mx.bfloat16))
            total += written
        largest = max(largest, 2 * rows * (shape[1] if len(shape) > 1 else 1))
    writer.finish()
    layers = 1 + max(int(name.split(".")[2]) for name in names if name.startswith("model.layers."))
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCAB,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return total, largest


def write_tokenizer(folder: Path) -> None:
    """Write a one-word tokenizer, which mlx_lm.convert requires."""
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def measure(code: str, source: Path, target: Path) -> tuple[float, int]:
    """Run code in a Python process, and return its wall time in seconds and its peak resident memory in bytes."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, str(source), str(target)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"conversion failed with exit code {process.returncode}")
    return seconds, usage.ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=4.0, help="minimum GB of bf16 weights")
    parser.add_argument("--shard-size", type=float, default=1.0, help="GB per shard")
    parser.add_argument("--only", choices=["ours", "mlx-lm"])
    parser.add_argument("--folder", help="folder for the checkpoint (default: a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        needed = args.size * 1e9 * 1.4
        free = shutil.disk_usage(temporary).free
        if free < needed:
            raise SystemExit(
                f"{temporary} has {free / 1e9:.1f} GB free, but {needed / 1e9:.1f} GB are needed. Pass another --folder"
            )
        source, target = Path(temporary) / "source", Path(temporary) / "target"
        size, largest = build(source, args.size * 1e9, args.shard_size * 1e9)
        bound = BOUND_FACTOR * largest + BOUND_EXTRA
        print(f"checkpoint: {size / 1e9:.2f} GB bf16 in {len(list(source.glob('*.safetensors')))} shards, ", end="")
        print(f"largest tensor {largest / 1e6:.0f} MB, bound {bound / 1e6:.0f} MB; MLX {mx.__version__}, ", end="")
        print(f"{mx.default_device()}, {os.cpu_count()} cores")
        print("| tool | peak MB | wall s | MB/s | within bound |\n|---|---:|---:|---:|---|")
        for name, code in (("mlx_qwen3", OURS), ("mlx_lm", THEIRS)):
            if args.only and args.only != {"mlx_qwen3": "ours", "mlx_lm": "mlx-lm"}[name]:
                continue
            seconds, peak = measure(code, source, target)
            shutil.rmtree(target)
            within = "yes" if peak <= bound else "no"
            print(f"| {name} | {peak / 1e6:.0f} | {seconds:.1f} | {size / 1e6 / seconds:.0f} | {within} |", flush=True)


if __name__ == "__main__":
    main()
