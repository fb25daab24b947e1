"""Measure the conversion of a GGUF file to an MLX folder, and the effect of the scales' dtype on speed.

Build a synthetic Qwen3 file (at least 4 GB, or --size) in a temporary folder, convert it in a separate process, and
print peak memory and throughput. The file has the types of Q4_K_M (Q4_K, and Q6_K for the embedding and for half of the
value and down projections) or a single type. Run it on an idle machine:

    python benchmarks/gguf_files.py [--size 4.0] [--kind Q4_K_M] [--to mlx|gguf] [--folder DIR]

With --speed, time one token through matrices in each packed layout and with each dtype of the scales, on the default
device:

    python benchmarks/gguf_files.py --speed [--rows 4096] [--columns 4096] [--rounds 30]
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlx.core as mx
import numpy as np

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 2048, 6144, 16, 8, 128, 151936
SCALES = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q3_K": (108,), "Q8_0": (0,), "Q4_0": (0,), "Q2_K": (80, 82)}
"""Type -> byte offsets of the float16 scales in a block."""
TO_MLX = "import sys; from mlx_qwen3 import convert; convert(sys.argv[1], sys.argv[2])"
TO_GGUF = (
    "import sys; from mlx_qwen3.conversion import convert_to_gguf; convert_to_gguf(sys.argv[1], sys.argv[2], 'q8_0')"
)
BOUND_FACTOR, BOUND_EXTRA = 4, 300e6


def kind_of(name: str, layer: int, kind: str) -> str:
    """Return the type of a matrix; a Q4_K_M file uses a larger type for sensitive matrices."""
    if kind != "Q4_K_M":
        return kind
    sensitive = name == "token_embd" or (name.endswith(("attn_v", "ffn_down")) and layer % 2 == 0)
    return "Q6_K" if sensitive else "Q4_K"


def build(path: Path, size: float, kind: str) -> tuple[int, int]:
    """Write the file, and return its size and the size of its largest tensor in float16, in bytes."""
    import gguf

    from mlx_qwen3 import AutoTokenizer
    from mlx_qwen3.bundled import bundled_model_path
    from mlx_qwen3.tokenizer.gguf_out import gguf_from_tokenizer

    block = {
        "attn_q": (HEADS * HEAD_DIM, HIDDEN),
        "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
        "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
        "attn_output": (HIDDEN, HEADS * HEAD_DIM),
        "ffn_gate": (INTERMEDIATE, HIDDEN),
        "ffn_up": (INTERMEDIATE, HIDDEN),
        "ffn_down": (HIDDEN, INTERMEDIATE),
    }
    norms = {"attn_norm": HIDDEN, "ffn_norm": HIDDEN, "attn_q_norm": HEAD_DIM, "attn_k_norm": HEAD_DIM}

    def nbytes(name: str, shape: tuple[int, ...], layer: int) -> int:
        values, packed = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind_of(name, layer, kind)]]
        return shape[0] * shape[1] // values * packed

    tensors: list[tuple[str, tuple[int, ...], str]] = [("token_embd", (VOCAB, HIDDEN), kind_of("token_embd", 0, kind))]
    total, layers = nbytes("token_embd", (VOCAB, HIDDEN), 0), 0
    while total < size or not layers:
        tensors += [(f"blk.{layers}.{name}", (width,), "F32") for name, width in norms.items()]
        tensors += [(f"blk.{layers}.{name}", shape, kind_of(name, layers, kind)) for name, shape in block.items()]
        total += sum(nbytes(name, shape, layers) for name, shape in block.items())
        layers += 1
    tensors.append(("output_norm", (HIDDEN,), "F32"))
    writer = gguf.GGUFWriter(path, "qwen3")
    for key, value in (
        ("block_count", layers),
        ("context_length", 40960),
        ("embedding_length", HIDDEN),
        ("feed_forward_length", INTERMEDIATE),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", KV_HEADS),
        ("attention.key_length", HEAD_DIM),
        ("attention.value_length", HEAD_DIM),
    ):
        writer.add_uint32(f"qwen3.{key}", value)
    writer.add_float32("qwen3.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_float32("qwen3.rope.freq_base", 1e6)
    for key, value in gguf_from_tokenizer(AutoTokenizer.from_pretrained(bundled_model_path()), VOCAB).items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, list(map(int, value)) if isinstance(value, np.ndarray) else value)
    random = np.random.default_rng(0)

    def rows(shape: tuple[int, ...], own: str) -> np.ndarray:
        if own == "F32":
            return np.ones(shape, np.float32)
        values, packed = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[own]]
        blocks = random.integers(0, 256, (shape[0] * shape[1] // values, packed), dtype=np.uint8)
        for start in SCALES[own]:
            scale = (random.normal(size=len(blocks)) / 512).astype(np.float16)
            blocks[:, start : start + 2] = scale[:, None].view(np.uint8)
        return blocks.reshape(shape[0], -1)

    for name, shape, own in tensors:
        number = gguf.GGMLQuantizationType[own]
        count = int(np.prod(shape))
        values, packed = gguf.GGML_QUANT_SIZES[number]
        row = (shape[0], shape[1] // values * packed) if own != "F32" else shape
        dtype = np.dtype(np.uint8 if own != "F32" else np.float32)
        writer.add_tensor_info(f"{name}.weight", row, dtype, count // values * packed, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, shape, own in tensors:
        writer.write_tensor_data(rows(shape, own))
    writer.close()
    return path.stat().st_size, 2 * VOCAB * HIDDEN


def measure(code: str, source: Path, target: Path) -> tuple[float, int]:
    """Run code in a Python process, and return its wall time in seconds and its peak resident memory in bytes."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, str(source), str(target)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"conversion failed with exit code {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


MATRICES = {"gpu": 24, "cpu": 1}
"""Matrices per measurement: too many for the caches of a GPU, and enough to hide the launch of a kernel."""


def speed(rows: int, columns: int, rounds: int) -> None:
    """Time one token through matrices in each packed layout of GGUF weights, with each dtype of the scales."""
    dtypes, count = (mx.float16, mx.bfloat16, mx.float32), MATRICES[mx.default_device().type.name]
    x = {dtype: mx.random.normal((1, columns)).astype(dtype) for dtype in dtypes}
    print(f"MLX {mx.__version__}, {mx.default_device()}, one token through {count} matrices of {rows} x {columns}")
    print("| bits, groups of 32 | float16 us | bfloat16 us | float32 us | float32 / float16 |")
    print("|---:|---:|---:|---:|---:|")
    for bits in (4, 5, 8):
        weights = [mx.random.normal((rows, columns)) * 0.02 for _ in range(count)]
        packed = {
            dtype: [mx.quantize(weight.astype(dtype), group_size=32, bits=bits) for weight in weights]
            for dtype in dtypes
        }
        mx.eval(x, packed)
        del weights
        times: dict[mx.Dtype, list[float]] = {dtype: [] for dtype in dtypes}
        for _ in range(rounds + 3):
            for dtype, matrices in packed.items():
                started = time.perf_counter()
                mx.eval(
                    [
                        mx.quantized_matmul(x[dtype], *arrays, transpose=True, group_size=32, bits=bits)
                        for arrays in matrices
                    ]
                )
                times[dtype].append((time.perf_counter() - started) / count)
        short, brain, long = (1e6 * statistics.median(times[dtype][3:]) for dtype in dtypes)
        print(f"| {bits} | {short:.1f} | {brain:.1f} | {long:.1f} | {long / short:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=4.0, help="minimum GB of the file")
    parser.add_argument("--kind", default="Q4_K_M", choices=["Q4_K_M", *SCALES])
    parser.add_argument("--to", default="mlx", choices=["mlx", "gguf"], help="output format (gguf: q8_0)")
    parser.add_argument("--folder", help="folder for the file (default: a temporary folder)")
    parser.add_argument("--speed", action="store_true", help="time the layouts instead")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    if args.speed:
        speed(args.rows, args.columns, args.rounds)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        source = Path(temporary) / "source.gguf"
        size, largest = build(source, args.size * 1e9, args.kind)
        bound = BOUND_FACTOR * largest + BOUND_EXTRA
        print(f"file: {size / 1e9:.2f} GB {args.kind}, largest tensor {largest / 1e6:.0f} MB in 16 bits, ", end="")
        print(f"bound {bound / 1e6:.0f} MB; MLX {mx.__version__}, {mx.default_device()}, {os.cpu_count()} cores")
        target = Path(temporary) / ("target" if args.to == "mlx" else "target.gguf")
        seconds, peak = measure(TO_MLX if args.to == "mlx" else TO_GGUF, source, target)
        print("| to | peak MB | wall s | MB/s read | within bound |\n|---|---:|---:|---:|---|")
        within = "yes" if peak <= bound else "no"
        print(f"| {args.to} | {peak / 1e6:.0f} | {seconds:.1f} | {size / 1e6 / seconds:.0f} | {within} |")


if __name__ == "__main__":
    main()
