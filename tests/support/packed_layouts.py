"""FP8, GPTQ and AWQ layers built from their published layouts, and their decoders in plain NumPy.

The code follows the descriptions of the formats, one element at a time, and shares nothing with the tested package.
"""

import struct
from pathlib import Path

import numpy as np

from mlx_qwen3.checkpoint.header import encode_header

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
"""The output, of eight, whose code is at index 0, 1, ... of a word, lowest bits first."""

SAFETENSORS_NAMES = {"float32": "F32", "float16": "F16", "int32": "I32", "uint8": "F8_E4M3", "uint16": "BF16"}


def write_safetensors(file: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write a safetensors file; uint8 arrays are e4m3, uint16 arrays bfloat16."""
    table = {name: (SAFETENSORS_NAMES[str(a.dtype)], a.shape) for name, a in tensors.items()}
    head, _ = encode_header(table, {"format": "pt"})
    file.write_bytes(head + b"".join(np.ascontiguousarray(array).tobytes() for array in tensors.values()))


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """Return the upper halves of float32 numbers (truncated)."""
    return (np.asarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def bfloat16_values(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def e4m3(code: int) -> float:
    """Return the value of one e4m3 byte."""
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = (code >> 3) & 0xF, code & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    if exponent == 0:
        return sign * (mantissa / 8) * 2.0**-6
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


def decode_fp8(codes: np.ndarray, scales: np.ndarray, block: tuple[int, int] = (128, 128)) -> np.ndarray:
    """(rows, columns) float32."""
    out = np.empty(codes.shape, np.float32)
    for i in range(codes.shape[0]):
        for j in range(codes.shape[1]):
            out[i, j] = np.float32(e4m3(int(codes[i, j]))) * np.float32(scales[i // block[0], j // block[1]])
    return out


def signed(word: int) -> int:
    return struct.unpack("<i", struct.pack("<I", word))[0]


def pack_gptq(codes: np.ndarray, zeros: np.ndarray, bits: int, version: str = "gptq") -> tuple[np.ndarray, np.ndarray]:
    """Return qweight (inputs / n, outputs) and qzeros (groups, outputs / n), with n = 32 / bits codes per word.

    Args:
        codes: (inputs, outputs).
        zeros: (groups, outputs); the first version stores them minus one, modulo 2^bits.
    """
    per_word = 32 // bits
    qweight = np.zeros((codes.shape[0] // per_word, codes.shape[1]), np.int32)
    for row in range(qweight.shape[0]):
        for column in range(qweight.shape[1]):
            word = 0
            for place in range(per_word):
                word |= int(codes[row * per_word + place, column]) << (bits * place)
            qweight[row, column] = signed(word)
    qzeros = np.zeros((zeros.shape[0], zeros.shape[1] // per_word), np.int32)
    for row in range(qzeros.shape[0]):
        for column in range(qzeros.shape[1]):
            word = 0
            for place in range(per_word):
                zero = int(zeros[row, column * per_word + place]) - (1 if version == "gptq" else 0)
                word |= (zero % 2**bits) << (bits * place)
            qzeros[row, column] = signed(word)
    return qweight, qzeros


def decode_gptq(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray, group_of_input: np.ndarray) -> np.ndarray:
    """(outputs, inputs) float32."""
    inputs, outputs = codes.shape
    out = np.empty((outputs, inputs), np.float32)
    for o in range(outputs):
        for i in range(inputs):
            g = group_of_input[i]
            out[o, i] = np.float32(scales[g, o]) * np.float32(int(codes[i, o]) - int(zeros[g, o]))
    return out


def pack_awq(codes: np.ndarray) -> np.ndarray:
    """Pack 4-bit codes (n, outputs) into words (n, outputs / 8)."""
    words = np.zeros((codes.shape[0], codes.shape[1] // 8), np.int32)
    for row in range(words.shape[0]):
        for column in range(words.shape[1]):
            word = 0
            for place, output in enumerate(AWQ_ORDER):
                word |= int(codes[row, column * 8 + output]) << (4 * place)
            words[row, column] = signed(word)
    return words


def gptq_tensors(
    path: str,
    inputs: int,
    outputs: int,
    *,
    bits: int = 4,
    group_size: int = 32,
    order: str = "none",
    version: str = "gptq",
    seed: int = 0,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return a random GPTQ layer and its decoded weight (outputs, inputs).

    Args:
        order: `none` for no g_idx, `sequential`, or `shuffled`.
    """
    rng = np.random.default_rng(seed)
    groups = inputs // (inputs if group_size == -1 else group_size)
    codes = rng.integers(0, 2**bits, (inputs, outputs))
    zeros = rng.integers(0, 2**bits, (groups, outputs))
    scales = rng.uniform(0.001, 0.02, (groups, outputs)).astype(np.float16)
    group = np.arange(inputs) // (inputs // groups)
    if order == "shuffled":
        group = rng.permutation(group)
    qweight, qzeros = pack_gptq(codes, zeros, bits, version)
    tensors = {f"{path}.qweight": qweight, f"{path}.qzeros": qzeros, f"{path}.scales": scales}
    if order != "none":
        tensors[f"{path}.g_idx"] = group.astype(np.int32)
    return tensors, decode_gptq(codes, zeros, scales, group)


def awq_tensors(
    path: str, inputs: int, outputs: int, *, group_size: int = 32, seed: int = 0
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return a random AWQ layer and its decoded weight (outputs, inputs)."""
    rng = np.random.default_rng(seed)
    groups = inputs // (inputs if group_size == -1 else group_size)
    codes, zeros = rng.integers(0, 16, (inputs, outputs)), rng.integers(0, 16, (groups, outputs))
    scales = rng.uniform(0.001, 0.02, (groups, outputs)).astype(np.float16)
    tensors = {f"{path}.qweight": pack_awq(codes), f"{path}.qzeros": pack_awq(zeros), f"{path}.scales": scales}
    return tensors, decode_gptq(codes, zeros, scales, np.arange(inputs) // (inputs // groups))


def fp8_tensors(
    path: str, rows: int, columns: int, *, scale_dtype: str = "float32", seed: int = 0
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return a random FP8 layer in 128 × 128 blocks and its decoded weight (rows, columns)."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (rows, columns)).astype(np.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0x7E
    scales = rng.uniform(1e-4, 1e-3, (-(-rows // 128), -(-columns // 128))).astype(np.float32)
    stored = scales
    if scale_dtype == "bfloat16":
        stored = bfloat16_bits(scales)
        scales = bfloat16_values(stored)
    tensors = {f"{path}.weight": codes, f"{path}.weight_scale_inv": stored}
    return tensors, decode_fp8(codes, scales)
