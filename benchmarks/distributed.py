"""One process against several, and against mlx-lm's own division of the same checkpoint.

    python benchmarks/distributed.py --sizes 8B 32B --bits 16 4 [--processes 2] [--backend nccl] [--folder DIR]

Each way runs in processes of its own, one after the other, on one random checkpoint: `one` process, `divided` (this
package over the processes), `mlx-lm` (its `shard()` over the processes). Peak memory of a process includes loading.
`--rows N` measures the classification of N texts on one process and on all. Prints a Markdown table and, with
`--output FILE`, writes JSON.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mlx.core as mx

MARK = "RESULT "


def make(size: str, bits: int, folder: Path, dtype: str = "bfloat16") -> None:
    """Write a random checkpoint of that size, one layer at a time."""
    from mlx_qwen3 import Qwen3Config
    from mlx_qwen3.bench.random_models import SIZES
    from mlx_qwen3.bundled import bundled_model_path
    from mlx_qwen3.quantization import PackedFormat

    config, form = Qwen3Config(**SIZES[size]), PackedFormat(bits, 64) if bits < 16 else None
    config.architectures, config.dtype = ["Qwen3ForCausalLM"], dtype
    values = config.to_dict()
    if form is not None:
        values["quantization"] = form.to_config()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled_model_path() / name, folder / name)
    width, inner, head = config.hidden_size, config.intermediate_size, config.head_dim
    attention, shared = config.num_attention_heads * head, config.num_key_value_heads * head
    layer = {
        "self_attn.q_proj": (attention, width),
        "self_attn.k_proj": (shared, width),
        "self_attn.v_proj": (shared, width),
        "self_attn.o_proj": (width, attention),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    norms = {"self_attn.q_norm": head, "self_attn.k_norm": head}
    norms |= {"input_layernorm": width, "post_attention_layernorm": width}
    kind = getattr(mx, dtype)
    mx.random.seed(0)

    def matrix(path: str, shape: tuple[int, int]) -> dict[str, mx.array]:
        weight = (mx.random.normal(shape, dtype=mx.bfloat16) * 0.02).astype(kind)
        if form is None:
            return {f"{path}.weight": weight}
        return {f"{path}.{part}": array for part, array in form.quantize(weight).items()}

    shards: list[dict[str, mx.array]] = []
    for number in range(config.num_hidden_layers):
        prefix = f"model.layers.{number}."
        shard = {f"{prefix}{name}.weight": mx.ones((size,), kind) for name, size in norms.items()}
        for name, shape in layer.items():
            shard |= matrix(prefix + name, shape)
        shards.append(shard)
    rest = {"model.norm.weight": mx.ones((width,), kind), **matrix("model.embed_tokens", (config.vocab_size, width))}
    if not config.tie_word_embeddings:
        rest |= matrix("lm_head", (config.vocab_size, width))
    shards.append(rest)
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        where |= dict.fromkeys(shard, file)
        mx.save_safetensors(str(folder / file), shard, {"format": "mlx"})
        shard.clear()
        mx.clear_cache()
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def work(way: str, folder: Path, prompt: int, tokens: int, rounds: int) -> None:
    """Load and generate on this process; rank 0 prints the figures of all ranks."""
    group = mx.distributed.init() if way != "one" else None
    mx.reset_peak_memory()
    began = time.perf_counter()
    if way == "mlx-lm":
        from mlx_lm.utils import load_model

        model: Any = load_model(folder, lazy=True)[0]
        model.shard(group)
        mx.eval(model.parameters())
    else:
        from mlx_qwen3 import Qwen3ForCausalLM

        model = Qwen3ForCausalLM.from_pretrained(folder, distributed=group or False)
    mx.eval(mx.zeros((1,)))
    loading, loaded = time.perf_counter() - began, mx.get_active_memory()
    loading_peak = mx.get_peak_memory()
    ids = mx.random.randint(0, 1000, (prompt,), key=mx.random.key(1))
    speeds = [_speed(way, model, ids, tokens) for _ in range(rounds + 1)][1:]
    own = [loaded / 1e9, loading_peak / 1e9, mx.get_peak_memory() / 1e9]
    if group is not None:
        shared = mx.distributed.all_gather(mx.array([own]), group=group)
        own = [max(row[i] for row in shared.tolist()) for i in range(3)]
    if group is None or group.rank() == 0:
        result = {
            "way": way,
            "loading s": loading,
            "resident GB": own[0],
            "loading peak GB": own[1],
            "peak GB": own[2],
            "prompt tok/s": statistics.median(prompt / first for first, _ in speeds),
            "decode tok/s": statistics.median(speed for _, speed in speeds),
        }
        print(MARK + json.dumps(result), flush=True)


def _speed(way: str, model: Any, ids: mx.array, tokens: int) -> tuple[float, float]:
    """Return the time to the first token in seconds, and tokens per second after it."""
    if way == "mlx-lm":
        from mlx_lm.generate import generate_step as step

        steps = step(ids, model, max_tokens=tokens)
    else:
        from mlx_qwen3 import generate_step

        steps = generate_step(model, ids, max_tokens=tokens)
    began = time.perf_counter()
    next(iter(steps))
    first = time.perf_counter() - began
    count = sum(1 for _ in steps)
    return first, count / (time.perf_counter() - began - first)


def classify(rows: int, size: str, distributed: bool) -> None:
    """Label `rows` texts of about 64 tokens with a random model that every process makes from one seed."""
    from mlx_qwen3 import Qwen3Config, Qwen3ForSequenceClassification, TextClassification, load
    from mlx_qwen3.bench.random_models import SIZES

    _, tokenizer = load()
    mx.random.seed(0)
    model = Qwen3ForSequenceClassification(
        Qwen3Config(**{**SIZES[size], "vocab_size": 151936}, num_labels=3, pad_token_id=0)
    )
    model.set_dtype(mx.bfloat16)
    mx.eval(model.parameters())
    task = TextClassification(model, tokenizer, distributed=distributed)
    texts = [f"row {i}: return the {'very ' * (i % 9)}arc cosine of a value " * 3 for i in range(rows)]
    task(texts[:512])
    began = time.perf_counter()
    task(texts)
    if not distributed or mx.distributed.init().rank() == 0:
        took = time.perf_counter() - began
        way = "rows divided" if distributed else "rows on one"
        print(MARK + json.dumps({"way": way, "texts/s": rows / took}), flush=True)


def start(arguments: list[str], processes: int, backend: str) -> dict[str, Any]:
    """Run this script in `processes` processes and return what rank 0 prints."""
    words = [sys.executable, str(Path(__file__).resolve()), *arguments]
    if processes > 1:
        names = [name for name in ("PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ]
        passed = [word for name in names for word in ("--env", f"{name}={os.environ[name]}")]
        words = [
            shutil.which("mlx.launch") or "mlx.launch",
            "-n",
            str(processes),
            "--backend",
            backend,
            *passed,
            "--",
            *words,
        ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    found = [line[len(MARK) :] for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not found:
        return {"way": arguments[1], "error": (done.stderr or done.stdout)[-400:]}
    return json.loads(found[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--sizes", nargs="+", default=["8B"])
    parser.add_argument("--bits", nargs="+", type=int, default=[16, 4])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--backend", default="nccl")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "mlx-qwen3-distributed")
    parser.add_argument("--prompt-tokens", type=int, default=2048)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.work in ("one", "divided", "mlx-lm"):
        work(options.work, options.folder, options.prompt_tokens, options.max_tokens, options.rounds)
        return
    if options.work is not None:
        classify(options.rows, options.sizes[0], options.work == "rows divided")
        return
    lengths = ["--prompt-tokens", str(options.prompt_tokens), "--max-tokens", str(options.max_tokens)]
    lengths += ["--rounds", str(options.rounds)]
    results = []
    for size in options.sizes:
        for bits in options.bits:
            folder = options.folder / f"{size}-{bits}"
            make(size, bits, folder, options.dtype)
            mx.clear_cache()
            for way in ("one", "divided", "mlx-lm"):
                count = 1 if way == "one" else options.processes
                found = start(["--work", way, "--folder", str(folder), *lengths], count, options.backend)
                results.append({"size": size, "bits": bits, **found})
                print(results[-1], flush=True)
            shutil.rmtree(folder)
    for way in ("rows on one", "rows divided") if options.rows else ():
        count = 1 if way == "rows on one" else options.processes
        arguments = ["--work", way, "--rows", str(options.rows), "--sizes", options.sizes[0]]
        results.append({"size": options.sizes[0], "bits": 16, **start(arguments, count, options.backend)})
        print(results[-1], flush=True)
    columns = list(dict.fromkeys(name for result in results for name in result))
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for result in results:
        cells = [result.get(name, "") for name in columns]
        print("| " + " | ".join(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |")
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
