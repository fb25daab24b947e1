"""Compare one process with several, and with mlx-lm's sharding of the same checkpoint.

    python benchmarks/distributed.py --sizes 8B --bits 16 4 --rows 10000 --output 8B.json
    python benchmarks/distributed.py --sizes 32B --bits 16 --output 32B-16.json
    python benchmarks/distributed.py --sizes 32B --bits 4 --output 32B-4.json

Each implementation runs in separate processes, one after the other, on one random checkpoint: `one` (a single
process), `divided` (this package, sharded over the processes) and `mlx-lm` (its `shard()` over the processes). Peak
memory of a process includes loading. `--rows N` measures the classification of N texts on one process and on all.

The script prints a Markdown table and the ratios. `--output FILE` is rewritten after every run, so that an interrupted
benchmark keeps its results.

The checkpoint repeats one random layer. It is written to memory (/dev/shm) if it fits, otherwise to the temporary
folder. `--keep` keeps it for the next run.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

MARK = "RESULT "
WAYS = ("one", "divided", "mlx-lm")
SAFETENSORS_NAMES = {mx.bfloat16: "BF16", mx.float16: "F16", mx.float32: "F32", mx.uint32: "U32", mx.uint8: "U8"}


def make(size: str, bits: int, folder: Path, dtype: str = "bfloat16") -> None:
    """Write a random checkpoint of the given size, which repeats one random layer under the names of all layers."""
    from mlx_qwen3 import Qwen3Config
    from mlx_qwen3.bench.random_models import SIZES
    from mlx_qwen3.bundled import bundled_model_path
    from mlx_qwen3.quantization import PackedFormat

    config, packed_format = Qwen3Config(**SIZES[size]), PackedFormat(bits, 64) if bits < 16 else None
    config.architectures, config.dtype = ["Qwen3ForCausalLM"], dtype
    values = config.to_dict()
    if packed_format is not None:
        values["quantization"] = packed_format.to_config()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled_model_path() / name, folder / name)
    width, inner, head = config.hidden_size, config.intermediate_size, config.head_dim
    attention, shared = config.num_attention_heads * head, config.num_key_value_heads * head
    matrices = {
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
        if packed_format is None:
            return {f"{path}.weight": weight}
        return {f"{path}.{part}": array for part, array in packed_format.quantize(weight).items()}

    layer = {f"{name}.weight": mx.ones((length,), kind) for name, length in norms.items()}
    for name, shape in matrices.items():
        layer |= matrix(name, shape)
    rest = {"model.norm.weight": mx.ones((width,), kind), **matrix("model.embed_tokens", (config.vocab_size, width))}
    if not config.tie_word_embeddings:
        rest |= matrix("lm_head", (config.vocab_size, width))
    count = config.num_hidden_layers + 1
    where: dict[str, str] = {}

    def write(number: int, prefix: str, arrays: dict[str, tuple[str, np.ndarray[Any, Any]]]) -> None:
        file = f"model-{number:05d}-of-{count:05d}.safetensors"
        where.update(dict.fromkeys((prefix + name for name in arrays), file))
        write_safetensors(folder / file, {prefix + name: array for name, array in arrays.items()})

    stored = {name: in_memory(array) for name, array in layer.items()}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        jobs = [
            pool.submit(write, number + 1, f"model.layers.{number}.", stored)
            for number in range(config.num_hidden_layers)
        ]
        jobs.append(pool.submit(write, count, "", {name: in_memory(array) for name, array in rest.items()}))
        for job in jobs:
            job.result()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "config.json").write_text(json.dumps(values))  # written last: its presence marks a complete checkpoint


def in_memory(array: mx.array) -> tuple[str, np.ndarray[Any, Any]]:
    """Return the safetensors name of the dtype, and the bytes of an array."""
    return SAFETENSORS_NAMES[array.dtype], np.array(array.view(mx.uint8))


def write_safetensors(path: Path, arrays: dict[str, tuple[str, np.ndarray[Any, Any]]]) -> None:
    """Write arrays of bytes (rows, row bytes) without copying them."""
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    offset = 0
    for name, (kind, array) in arrays.items():
        item = {"F32": 4, "U32": 4, "U8": 1}.get(kind, 2)
        shape = [*array.shape[:-1], array.shape[-1] // item]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in arrays.values():
            array.tofile(file)


def checkpoint_bytes(size: str, bits: int) -> int:
    """Return the approximate size of a checkpoint in bytes."""
    from mlx_qwen3.bench.random_models import SIZES

    fields = SIZES[size]
    width, inner, head = fields["hidden_size"], fields["intermediate_size"], fields["head_dim"]
    heads = 2 * fields["num_attention_heads"] + 2 * fields["num_key_value_heads"]
    layers = fields["num_hidden_layers"] * width * (heads * head + 3 * inner)
    numbers = layers + fields["vocab_size"] * width * (1 if fields["tie_word_embeddings"] else 2)
    return int(numbers * (2 if bits >= 16 else bits / 8 + 0.0625))


def default_folder(needed: int) -> Path:
    """Return a folder for a checkpoint of `needed` bytes, in /dev/shm if the available memory is 2.5 times its size."""
    memory = Path("/dev/shm")
    if memory.is_dir():
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if shutil.disk_usage(memory).free > 1.1 * needed and available > 2.5 * needed:
            return memory / "mlx-qwen3-distributed"
    return Path(tempfile.gettempdir()) / "mlx-qwen3-distributed"


def work(way: str, folder: Path, prompt: int, tokens: int, rounds: int) -> None:
    """Load and generate in this process. Rank 0 prints the maximum over the ranks of each memory figure."""
    group = mx.distributed.init() if way != "one" else None
    mx.reset_peak_memory()
    start_time = time.perf_counter()
    if way == "mlx-lm":
        from mlx_lm.utils import load_model

        model: Any = load_model(folder, lazy=True)[0]
        model.shard(group)
        mx.eval(model.parameters())
    else:
        from mlx_qwen3 import Qwen3ForCausalLM

        model = Qwen3ForCausalLM.from_pretrained(folder, distributed=group or False)
    mx.eval(mx.zeros((1,)))
    loading, loaded = time.perf_counter() - start_time, mx.get_active_memory()
    loading_peak = mx.get_peak_memory()
    ids = mx.random.randint(0, 1000, (prompt,), key=mx.random.key(1))
    speeds = [_measure_speed(way, model, ids, tokens) for _ in range(rounds + 1)][1:]
    own: Any = [loaded / 1e9, loading_peak / 1e9, mx.get_peak_memory() / 1e9]
    if group is not None:
        own = mx.distributed.all_gather(mx.array([own]), group=group).max(axis=0).tolist()
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


def _measure_speed(way: str, model: Any, ids: mx.array, tokens: int) -> tuple[float, float]:
    """Return the time to the first token in seconds, and tokens per second after it."""
    if way == "mlx-lm":
        from mlx_lm.generate import generate_step as step

        steps = step(ids, model, max_tokens=tokens)
    else:
        from mlx_qwen3 import generate_step

        steps = generate_step(model, ids, max_tokens=tokens)
    start_time = time.perf_counter()
    next(iter(steps))
    first = time.perf_counter() - start_time
    count = sum(1 for _ in steps)
    return first, count / (time.perf_counter() - start_time - first)


def classify(rows: int, size: str, distributed: bool) -> None:
    """Classify `rows` texts of about 64 tokens with a random model that every process creates from the same seed."""
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
    start_time = time.perf_counter()
    task(texts)
    if not distributed or mx.distributed.init().rank() == 0:
        seconds = time.perf_counter() - start_time
        way = "rows divided" if distributed else "rows on one"
        print(MARK + json.dumps({"way": way, "texts/s": rows / seconds}), flush=True)


def start(arguments: list[str], processes: int, backend: str, limit: float) -> dict[str, Any]:
    """Run this script in `processes` processes, and return the result printed by rank 0."""
    words = [sys.executable, str(Path(__file__).resolve()), *arguments]
    if processes > 1:
        names = [name for name in os.environ if name in ("PYTHONPATH", "LD_LIBRARY_PATH") or name.startswith("NCCL_")]
        passed = [word for name in names for word in ("--env", f"{name}={os.environ[name]}")]
        launcher = shutil.which("mlx.launch", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        words = [
            launcher or "mlx.launch",
            "-n",
            str(processes),
            "--backend",
            backend,
            *passed,
            "--",
            *words,
        ]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(words, start_new_session=True, **pipes)
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return {"way": arguments[1], "error": f"no result after {limit:.0f} s"}
    found = [line[len(MARK) :] for line in out.splitlines() if line.startswith(MARK)]
    if not found:
        return {"way": arguments[1], "error": (err or out)[-800:]}
    return json.loads(found[-1])


def ratios(results: list[dict[str, Any]]) -> list[str]:
    """Return one line per comparison and checkpoint, with the two implementations and their ratio."""
    lines = []
    for size, bits in dict.fromkeys((result["size"], result["bits"]) for result in results):
        found = {result["way"]: result for result in results if (result["size"], result["bits"]) == (size, bits)}
        comparisons = [
            ("peak memory of a rank, loading included", "divided", "one", "peak GB"),
            ("peak memory of a rank while loading", "divided", "one", "loading peak GB"),
            ("peak memory of a rank", "divided", "mlx-lm", "peak GB"),
            ("decode", "divided", "mlx-lm", "decode tok/s"),
            ("decode", "divided", "one", "decode tok/s"),
            ("prompt", "divided", "one", "prompt tok/s"),
            ("prompt", "divided", "mlx-lm", "prompt tok/s"),
            ("rows", "rows divided", "rows on one", "texts/s"),
        ]
        for what, way, other, column in comparisons:
            pair = [found.get(name, {}).get(column) for name in (way, other)]
            if pair[0] and pair[1]:
                lines.append(f"{size}, {bits} bits: {what}, {way} / {other}: {pair[0] / pair[1]:.3f}")
    return lines


def report(results: list[dict[str, Any]], output: Path | None) -> None:
    """Write the results so far to `output`."""
    if output is not None:
        output.write_text(json.dumps({"results": results, "ratios": ratios(results)}, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--sizes", nargs="*", default=["8B"])
    parser.add_argument("--bits", nargs="+", type=int, default=[16, 4])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--backend", default="nccl")
    parser.add_argument("--folder", type=Path, help="folder for checkpoints (default: in memory, if they fit)")
    parser.add_argument(
        "--keep", action="store_true", help="keep checkpoints for the next run, and reuse existing ones"
    )
    parser.add_argument("--prompt-tokens", type=int, default=2048)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--rows-size", default="8B", help="size of the model that classifies --rows (default: 8B)")
    parser.add_argument("--limit", type=float, default=200, help="timeout of one run in seconds")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.work in WAYS:
        work(options.work, options.folder, options.prompt_tokens, options.max_tokens, options.rounds)
        return
    if options.work is not None:
        classify(options.rows, options.rows_size, options.work == "rows divided")
        return
    lengths = ["--prompt-tokens", str(options.prompt_tokens), "--max-tokens", str(options.max_tokens)]
    lengths += ["--rounds", str(options.rounds)]
    results: list[dict[str, Any]] = []

    def measure(size: str, bits: int, arguments: list[str], count: int) -> None:
        start_time = time.perf_counter()
        found = start(arguments, count, options.backend, options.limit)
        results.append({"size": size, "bits": bits, **found})
        print(results[-1], f"({time.perf_counter() - start_time:.0f} s)", flush=True)
        report(results, options.output)

    for size in options.sizes:
        for bits in options.bits:
            needed = checkpoint_bytes(size, bits)
            folder = (options.folder or default_folder(needed)) / f"{size}-{bits}"
            start_time = time.perf_counter()
            try:
                if not (options.keep and (folder / "config.json").is_file()):
                    make(size, bits, folder, options.dtype)
                seconds = time.perf_counter() - start_time
                print(f"{folder}: {needed / 1e9:.1f} GB, written in {seconds:.0f} s", flush=True)
                mx.clear_cache()
                for way in options.ways:
                    count = 1 if way == "one" else options.processes
                    measure(size, bits, ["--work", way, "--folder", str(folder), *lengths], count)
            finally:
                if not options.keep:
                    shutil.rmtree(folder, ignore_errors=True)
    for way in ("rows on one", "rows divided") if options.rows else ():
        arguments = ["--work", way, "--rows", str(options.rows), "--rows-size", options.rows_size]
        measure(options.rows_size, 16, arguments, 1 if way == "rows on one" else options.processes)
    columns = list(dict.fromkeys(name for result in results for name in result))
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for result in results:
        cells = [result.get(name, "") for name in columns]
        print("| " + " | ".join(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |")
    print("\n".join(ratios(results)))


if __name__ == "__main__":
    main()
